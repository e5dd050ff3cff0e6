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
import time
from collections.abc import AsyncIterator
from pathlib import Path

_held: set[int] = set()


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
        await asyncio.sleep(random.uniform(0.01, 0.03))
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


def _close_in_child() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
