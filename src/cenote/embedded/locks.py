"""Advisory file locks (flock), awaited by polling so that a cancelled wait leaves no thread behind.

start.lock (exclusive): whoever starts, stops or restarts a server.
users.lock (shared): the lease of one user; exclusive only for a moment under start.lock, to learn who is the
last. server.lock (exclusive): inherited by a server and its children, see `process`. A lock belongs to the
open file, so two stores in one process count as two users. A forked child closes its copies: it would
otherwise keep its parent's lease after the parent's death.
"""

import asyncio
import contextlib
import fcntl
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

from cenote.embedded import process
from cenote.embedded.waiting import blocking
from cenote.errors import ServerStartError
from cenote.limits import SERVER_RESTART_S

_held: set[int] = set()
_dice = random.Random()  # its own: a program that seeds the global one must get what it expects


def open_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _held.add(descriptor)
    return descriptor


def close_lock(descriptor: int) -> None:
    """Close our copy; the lock goes with its last copy."""
    _held.discard(descriptor)
    os.close(descriptor)


def try_lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def lock(descriptor: int, operation: int, seconds: float | None = None) -> bool:
    """Wait for a lock; False when `seconds` passed without it."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while not try_lock(descriptor, operation):
        if deadline is not None and time.monotonic() > deadline:
            return False
        await asyncio.sleep(_dice.uniform(0.01, 0.03))
    return True


@contextlib.asynccontextmanager
async def exclusive(path: Path) -> AsyncIterator[None]:
    """Hold this lock file exclusively."""
    descriptor = open_lock(path)
    try:
        await lock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        close_lock(descriptor)


@contextlib.asynccontextmanager
async def server_lock(path: Path, *programs: str) -> AsyncIterator[int]:
    """Hold a server's lock until a new server has inherited it.

    It is free as soon as the old server and its children are gone. Those of a killed postmaster take a
    moment; a server that state.json does not know (its starter was killed in between) is told to stop.

    Raises:
        ServerStartError: somebody keeps the lock, and it is none of these programs, or out of our sight.
    """
    descriptor = open_lock(path)
    try:
        if not await lock(descriptor, fcntl.LOCK_EX, 1):
            await _evict(path, descriptor, programs)
        yield descriptor
    finally:
        close_lock(descriptor)


async def end_unknown(path: Path, *programs: str) -> None:
    """End a server whose starter was killed before it could note it; usually there is none."""
    if await blocking(path.exists):
        async with server_lock(path, *programs):
            pass


async def _evict(path: Path, descriptor: int, programs: tuple[str, ...]) -> None:
    for number in (signal.SIGINT, signal.SIGQUIT):
        for pid in await blocking(process.holders, path):
            if pid != os.getpid() and (process.program_of(pid) or "").startswith(programs):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        if await lock(descriptor, fcntl.LOCK_EX, SERVER_RESTART_S):
            return
    raise ServerStartError(
        f"another server still uses {path.parent}",
        hint=f"end the process that holds {path}; it may run in another container",
    )


def _close_in_child() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
