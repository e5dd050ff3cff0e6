"""Private servers for `cenote.open()` without URLs: one nats-server and one PostgreSQL on the loopback
interface, started from their wheels, shared by all processes that open the same data directory, stopped by
the last.

Who is authoritative: the kernel's file locks say who uses a data directory and which server still lives; the
files say what was promised (`nats/clean`: the store is complete); state.json only says where things are.
"""

from cenote.embedded.control import Stopped, inspect, stop
from cenote.embedded.needs import NatsAddress, Recover
from cenote.embedded.servers import Servers, acquire
from cenote.embedded.state import TEMPORARY

__all__ = ["TEMPORARY", "NatsAddress", "Recover", "Servers", "Stopped", "acquire", "inspect", "stop"]
