"""A flusher in a process of its own that is really frozen (SIGSTOP) in the middle of a batch, and woken when the world
has moved on.

It stops itself where it crosses a point; or it is stopped from outside when its statement has left it and PostgreSQL
has not seen it yet: `Wire` stands between the two and keeps the statement until it is let go.
"""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cenote
from cenote import points
from cenote.sql.loader import Queries

SENT = "sent"  # the statement is on the wire
WORST_S = 1.0  # what a woken process gets, by its own clock, to do its worst
replaced: list[tuple[str, str]] = []  # in the statements of the next sleeper: a rule that is taken out of it


class Wire:
    """A TCP relay before PostgreSQL that holds up the connection over which certain bytes come."""

    def __init__(self, url: str) -> None:
        self._server = urlsplit(url)
        self._needle: bytes | None = None
        self._free = asyncio.Event()
        self.caught = asyncio.Event()
        self.url = ""

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Wire"]:
        """Relay until the end of the block."""
        serving = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = serving.sockets[0].getsockname()[1]
        here = self._server.netloc.replace(f":{self._server.port}", f":{port}")
        self.url = self._server._replace(netloc=here).geturl()
        try:
            yield self
        finally:
            self.let_go()
            serving.close()

    def catch(self, needle: bytes) -> None:
        """Keep what contains these bytes, and all that follows it."""
        self._needle = needle

    def let_go(self) -> None:
        """Deliver what was kept."""
        self._needle = None
        self._free.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream = await asyncio.open_connection(self._server.hostname, self._server.port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pump(reader, upstream[1]), self._pump(upstream[0], writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                if self._needle is not None and self._needle in data:
                    self.caught.set()
                    await self._free.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


class Sleeper:
    """The process, as its waker sees it."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child

    async def heard(self, name: str) -> dict[str, Any]:
        """Wait for its next line, which has this name."""
        assert self.child.stdout is not None
        line = await self.child.stdout.readline()
        assert line, "the sleeper has ended"
        told: dict[str, Any] = json.loads(line)
        assert name in told, told
        return told

    async def arm(self) -> None:
        """From now on it stops at its point."""
        assert self.child.stdin is not None
        self.child.stdin.write(b"\n")
        await self.heard("armed")

    async def stopped(self, wire: Wire | None) -> None:
        """Wait until it stands still; with a wire, when its statement is on it."""
        if wire is not None:
            await asyncio.wait_for(wire.caught.wait(), 20)
            self.child.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(20):
            while _state(self.child.pid) != "T":
                await asyncio.sleep(0.005)

    async def woken(self) -> dict[str, Any]:
        """Let it go on, and do its worst; what it tells of that."""
        self.child.send_signal(signal.SIGCONT)
        return await self.tells()

    async def tells(self) -> dict[str, Any]:
        """What it has warned of once it had its time."""
        assert self.child.stdin is not None
        self.child.stdin.write(b"\n")
        async with asyncio.timeout(30):
            return await self.heard("log")


@asynccontextmanager
async def sleeper(settings: dict[str, Any], point: str) -> AsyncIterator[Sleeper]:
    """A flusher that will be frozen, open by now. `point` may be `SENT`."""
    order = json.dumps({"settings": settings, "point": point, "replaced": replaced})
    child = await asyncio.create_subprocess_exec(
        sys.executable, __file__, order, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        one = Sleeper(child)
        async with asyncio.timeout(30):
            await one.heard("open")
        yield one
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# --- the process ----------------------------------------------------------------------------------------------


class _Kept(logging.Handler):
    """What the process said in its log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _without_rules(pairs: list[tuple[str, str]]) -> None:
    plain = Queries.__getitem__

    def changed(self: Queries, name: str) -> str:
        text = plain(self, name)
        for old, new in pairs:
            text = text.replace(old, new)
        return text

    Queries.__getitem__ = changed  # type: ignore[method-assign]  # a rule is taken out of this process


def _say(**told: Any) -> None:
    os.write(1, json.dumps(told).encode() + b"\n")


async def _sleep(order: dict[str, Any], kept: _Kept) -> None:
    async def freeze(point: str) -> None:
        if point == order["point"]:
            points.armed = False
            os.kill(os.getpid(), signal.SIGSTOP)

    async with cenote.open(**order["settings"]):
        _say(open=True)
        await asyncio.to_thread(sys.stdin.readline)
        points.hook, points.armed = freeze, True
        _say(armed=True)
        while await asyncio.to_thread(sys.stdin.readline):
            await asyncio.sleep(WORST_S)
            _say(log=kept.lines)


def main() -> None:
    order = json.loads(sys.argv[1])
    _without_rules(order["replaced"])
    kept = _Kept()
    logging.getLogger("cenote").addHandler(kept)
    asyncio.run(_sleep(order, kept))


if __name__ == "__main__":
    main()
