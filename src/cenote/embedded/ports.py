"""Ports that stay: chosen once for each data directory, so that clients find a restarted server where it
was."""

import random
import socket
import time

from cenote.errors import ServerStartError
from cenote.limits import EMBEDDED_PORT_MAX, EMBEDDED_PORT_MIN


def choose(kept: int, patience_s: float = 2) -> int:
    """The kept port as soon as it is free, else a new one.

    New ports lie below the range that systems take client ports from. In that range another process's
    outgoing connection, or a client that dials the port while the server is down and meets itself, could hold
    the port when the server comes back.
    """
    deadline = time.monotonic() + patience_s
    while kept and not _is_free(kept):
        if time.monotonic() > deadline:
            kept = 0
        time.sleep(0.02)
    if kept:
        return kept
    for _ in range(1_000):
        port = random.randint(EMBEDDED_PORT_MIN, EMBEDDED_PORT_MAX)
        if _is_free(port):
            return port
    raise ServerStartError(f"no free port from {EMBEDDED_PORT_MIN} to {EMBEDDED_PORT_MAX} on 127.0.0.1")


def was_taken(words: str) -> bool:
    """Whether a server's last words say that somebody was faster in taking its port."""
    return "ddress already in use" in words


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
