"""The fast lane: message frames go from the socket's bytes straight to a plain function.

nats-py's own road for a message is two regular expressions over a growing buffer, a message object, a queue
and a task switch: half of a request's time. This parser takes the frames of registered subscriptions out of
the stream with `bytes.find` and leaves everything else (INFO, PING, PONG, errors, foreign subscriptions) to
nats-py, which keeps the connection, TLS, authentication and liveness. It leans on private names of nats-py;
all of them are named in this file, `tests/unit/test_lane.py` fails when they move, and `install` then answers
False (the public road of `road.py` is taken).
"""

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

from nats.aio.client import Client
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

Handler = Callable[[bytes, bytes, bytes, bytes], None]
"""Takes subject, reply, header (b"" or the block from "NATS/1.0" to the blank line) and payload."""

_CONTROL_LINE_BYTES_MAX = 1 << 16  # INFO of a big cluster is some KiB
_M, _H = b"MH"
_TASKS = ("_reading_task", "_flusher_task", "_ping_interval_task")
_log = logging.getLogger("cenote.kv")


class LaneParser(Parser):
    """Cuts a byte stream, in chunks of any size, into frames.

    A chunk is copied at most twice however large the frame it belongs to: pieces of an unfinished frame
    wait in a list and are joined when the last one has come.
    """

    def __init__(self, nc: Client, handlers: dict[int, Handler]) -> None:
        super().__init__(nc)
        self._handlers = handlers

    def reset(self) -> None:
        super().reset()
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = 0

    async def parse(self, data: bytes = b"") -> None:
        rest = self.feed(data)
        if rest:
            await super().parse(rest)

    def feed(self, data: bytes) -> bytes:
        """Deliver the complete frames of registered subscriptions; return the complete other ones.

        Every message passes here: one loop, and no call for a frame but its handler's.
        """
        if self._pieces and not (data := self._joined(data)):
            return b""
        others: list[bytes] = []
        position, end = 0, len(data)
        while position < end:
            line_end = data.find(b"\r\n", position)
            if line_end < 0:
                if end - position > _CONTROL_LINE_BYTES_MAX:
                    raise ProtocolError
                self._keep(data, position, end + 1)
                break
            first, start = data[position], line_end + 2
            if first != _H and first != _M:
                others.append(data[position:start])
                position = start
                continue
            words = data[position:line_end].split()
            stop = start + int(words[-1])
            if stop + 2 > end:
                self._keep(data, position, stop + 2)
                break
            handler = self._handlers.get(int(words[2]))
            if handler is None:
                others.append(data[position : stop + 2])
            else:
                body = start + int(words[-2]) if first == _H else start
                reply = words[3] if len(words) == (6 if first == _H else 5) else b""
                try:
                    handler(words[1], reply, data[start:body], data[body:stop])
                except Exception:  # noqa: BLE001  the top of a callback: one bad handler must not end the read loop
                    _log.exception("a subscription callback failed")
            position = stop + 2
        return b"".join(others)

    def _keep(self, data: bytes, position: int, need: int) -> None:
        """The frame that begins at `position` is incomplete before `data` has `need` bytes."""
        self._pieces = [data[position:] if position else data]
        self._have = len(data) - position
        self._need = need - position

    def _joined(self, data: bytes) -> bytes:
        """The unfinished frame and what has come since; b"" while that is not enough."""
        self._pieces.append(data)
        self._have += len(data)
        if self._have < self._need:
            return b""
        data = b"".join(self._pieces)
        self._pieces = []
        return data


def names_hold() -> bool:
    """Whether the private names of nats-py that this file leans on are where they were."""
    nc = Client()
    return (
        isinstance(getattr(nc, "_ps", None), Parser)
        and hasattr(nc, "_transport")
        and isinstance(getattr(nc, "_server_info", None), dict)
        and all(hasattr(nc, name) for name in _TASKS)
        and inspect.iscoroutinefunction(Parser.parse)
        and callable(getattr(Parser, "reset", None))
    )


def install(nc: Client, handlers: dict[int, Handler]) -> bool:
    """Give frames of the subscription ids in `handlers` (a live dict) to it; call before `nc.connect()`.

    False, and nothing changed, when nats-py's private names have moved.
    """
    if not names_hold():
        return False
    nc._ps = LaneParser(nc, handlers)
    return True


def socket_transport(nc: Client) -> asyncio.WriteTransport | None:
    """The asyncio transport under a connected nats-py client; None when its private names have moved."""
    writer = getattr(getattr(nc, "_transport", None), "_io_writer", None)
    transport = getattr(writer, "transport", None)
    needed = (
        "write",
        "abort",
        "is_closing",
        "get_write_buffer_size",
    )  # uvloop's shares no base class with asyncio's
    return transport if all(hasattr(transport, name) for name in needed) else None


def server_info(nc: Client) -> dict[str, Any]:
    """The INFO the server greeted with; empty when nats-py's private name has moved."""
    info = getattr(nc, "_server_info", None)
    return info if isinstance(info, dict) else {}


def hush(nc: Client, on_end: Callable[[], None]) -> None:
    """Let nobody complain about nats-py's own tasks: its read loop ends with the broken pipe that it has reported,
    nobody awaits it, and the garbage collector would log that at any moment, in the middle of whatever runs.

    on_end: told whenever one of them ends. nats-py ends them before it waits for a frozen server to take its last
    words, its own callbacks come afterwards, if ever.
    """

    def ended(task: "asyncio.Task[Any]") -> None:
        if not task.cancelled():
            task.exception()
        on_end()

    for name in _TASKS:
        task = getattr(nc, name, None)
        if isinstance(task, asyncio.Task):
            task.add_done_callback(ended)
