"""Faults for tests: a TCP proxy that cuts, holds and loses answers, and processes that stand still.

A client that reaches its server through the proxy sees what a network does to it; the server goes on. Both are used
by cenote's own tests, and change nothing outside of the process tree that they are given.
"""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from types import TracebackType
from typing import Self

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with zero seconds: close() sends RST
_CHUNK_BYTES = 65_536


class FaultProxy:
    """Stands before one TCP server on this machine: `async with FaultProxy(server_port) as proxy`.

    Attributes:
        port: where clients connect.
        delay_s: how long each chunk of bytes is held back, in either direction; in the order in which they came.
        accepted, refused, lost: connections let through, turned away, and reset in place of an answer; a test asserts
            with them that its fault did hit.
    """

    def __init__(self, server_port: int, host: str = "127.0.0.1") -> None:
        self._host = host
        self._server_port = server_port
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False
        self._needle: bytes | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.delay_s = 0.0
        self.port = self.accepted = self.refused = self.lost = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self._host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        self._open.set()
        if self._serving:
            await asyncio.wait(self._serving, timeout=5)

    def cut(self) -> None:
        """Reset all connections and refuse new ones until `heal()`."""
        self._refusing = True
        self.reset()

    def reset(self) -> None:
        """Reset all connections; new ones are let through."""
        for pair in list(self._pairs):
            _reset(pair)

    def hold(self) -> None:
        """Let no byte through, in either direction, until `heal()`; nothing is lost."""
        self._open.clear()

    def heal(self) -> None:
        """Let everything through again."""
        self._refusing = False
        self._open.set()

    def lose_answer_to(self, needle: bytes) -> None:
        """The next request that contains `needle` reaches the server, and then its connection is reset."""
        self._needle = needle

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._refusing:
                raise ConnectionRefusedError
            upstream = await asyncio.open_connection(self._host, self._server_port)
        except OSError:
            self.refused += 1
            _reset((writer,))
            return
        self.accepted += 1
        pair = (writer, upstream[1])
        self._pairs.add(pair)
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        both = (self._pump(reader, upstream[1], pair, asking=True), self._pump(upstream[0], writer, pair, asking=False))
        try:
            await asyncio.gather(*both)
        finally:
            self._pairs.discard(pair)
            for end in pair:
                end.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: tuple[asyncio.StreamWriter, ...],
        *, asking: bool,
    ) -> None:  # fmt: skip
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._open.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
                if asking and self._needle is not None and self._needle in data:
                    self._needle = None
                    self.lost += 1
                    pair[0].transport.abort()  # the client; the server still reads what was sent to it
                    break
        with contextlib.suppress(OSError):
            writer.close()


def _reset(ends: tuple[asyncio.StreamWriter, ...]) -> None:
    for end in ends:
        link: socket.socket | None = end.get_extra_info("socket")
        if link is not None:
            with contextlib.suppress(OSError):
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        end.transport.abort()


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[list[int]]:
    """Stop a process and all its descendants (SIGSTOP) for the length of the block; yields their pids.

    The connections of a frozen server stay open and answer nothing. End only what is yours.
    """
    os.kill(pid, signal.SIGSTOP)  # first: it starts no further children
    stopped = [pid]
    try:
        for child in descendants(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGSTOP)
                stopped.append(child)
        yield stopped
    finally:
        for one in reversed(stopped):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGCONT)


def descendants(pid: int) -> list[int]:
    """The children of a process, their children, and so on."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    children: dict[int, list[int]] = {}
    for line in listing.stdout.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found = list(children.get(pid, []))
    for one in found:
        found += children.get(one, [])
    return found
