"""Two roads over one nats-py connection, with the same verbs: the fast lane, and nats-py's public interface.

A road lives exactly as long as its connection: whatever it still holds when the connection breaks goes with
it, so that nothing published before a reconnect can land after it (flow rule 7).
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error

from cenote.kv.lane import Handler

_PREFACE = b"NATS/1.0"
_SERVER_LINES = (  # in the order in which the server appends them; `message.py` has why
    "Nats-Stream",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
)


class Road(Protocol):
    """How bytes leave, and how messages come in, while one connection lasts."""

    def write(self, frames: bytes) -> None:
        """Send whole client protocol frames (PUB, HPUB)."""

    def buffered(self) -> int:
        """How many bytes wait for the socket."""

    def subscribe(self, sid: int, subject: str, handler: Handler, queue: str = "") -> None:
        """queue: of all subscriptions that name the same one, each message comes to one."""

    def unsubscribe(self, sid: int) -> None: ...

    def abort(self) -> None:
        """Break the connection now and drop what waits."""


class FastRoad:
    """Own frames straight to the socket; messages from `lane.LaneParser`."""

    def __init__(self, transport: asyncio.WriteTransport, handlers: dict[int, Handler]) -> None:
        self._transport = transport
        self._handlers = handlers
        self.write = transport.write
        self.buffered = transport.get_write_buffer_size
        self.abort = transport.abort

    def subscribe(self, sid: int, subject: str, handler: Handler, queue: str = "") -> None:
        self._handlers[sid] = handler
        self.write(b"SUB %s %s %d\r\n" % (subject.encode(), queue.encode(), sid))

    def unsubscribe(self, sid: int) -> None:
        if self._handlers.pop(sid, None):
            self.write(b"UNSUB %d\r\n" % sid)


class PublicRoad:
    """The same through nats-py's documented interface only: slower, for the day its private names move."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._subscriptions: dict[int, Subscription] = {}
        self._queue: deque[tuple[int, Callable[[], Awaitable[None]]]] = deque()
        self._queued_bytes = 0
        self._some = asyncio.Event()
        self._task = asyncio.create_task(self._work())

    def write(self, frames: bytes) -> None:
        for subject, reply, header, payload in client_frames(frames):
            self._later(partial(self._nc.publish, subject, payload, reply, header), len(payload))

    def buffered(self) -> int:
        return self._queued_bytes

    def subscribe(self, sid: int, subject: str, handler: Handler, queue: str = "") -> None:
        async def work() -> None:
            async def deliver(message: Msg) -> None:
                reply, header = message.reply.encode(), header_block(message.headers)
                handler(message.subject.encode(), reply, header, message.data)

            self._subscriptions[sid] = await self._nc.subscribe(subject, queue, cb=deliver)

        self._later(work)

    def unsubscribe(self, sid: int) -> None:
        async def work() -> None:
            await self._subscriptions.pop(sid).unsubscribe()

        self._later(work)

    def abort(self) -> None:
        self._task.cancel()

    def _later(self, work: Callable[[], Awaitable[None]], size: int = 0) -> None:
        self._queue.append((size, work))
        self._queued_bytes += size
        self._some.set()

    async def _work(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            while self._queue:
                size, work = self._queue.popleft()
                with contextlib.suppress(Error):  # the connection broke; its requests fail with it
                    await work()
                self._queued_bytes -= size


def client_frames(frames: bytes) -> list[tuple[str, str, dict[str, str] | None, bytes]]:
    """Take own PUB and HPUB frames apart again into subject, reply, headers and payload."""
    result: list[tuple[str, str, dict[str, str] | None, bytes]] = []
    position = 0
    while position < len(frames):
        line_end = frames.index(b"\r\n", position)
        verb, subject, *rest = frames[position:line_end].decode().split()
        with_header = verb == "HPUB"
        stop = line_end + 2 + int(rest[-1])
        body = line_end + 2 + int(rest[-2]) if with_header else line_end + 2
        reply = rest[0] if len(rest) == (3 if with_header else 2) else ""
        lines = frames[line_end + 2 : body].decode().split("\r\n")[1:-2] if with_header else []
        header = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        result.append((subject, reply, header or None, frames[body:stop]))
        position = stop + 2
    return result


def header_block(headers: dict[str, str] | None) -> bytes:
    """The header block as it came over the wire, from nats-py's dict."""
    if not headers:
        return b""
    names = [name for name in headers if name not in ("Status", "Description", *_SERVER_LINES)]
    # Of two lines with one name nats-py's dict has the first one's place and the last one's value.
    names += [name for name in _SERVER_LINES if name in headers]
    lines = [f"{name}: {headers[name]}" for name in names]
    status = " ".join(["", headers["Status"], headers.get("Description", "")]) if "Status" in headers else ""
    return _PREFACE + "\r\n".join([status.rstrip(), *lines, "", ""]).encode()
