"""Turns at a key: within one process the compare-and-sets of a key queue, first come, first served, and collide with
those of other processes only."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cenote.errors import ConflictError
from cenote.retry import Backoff


class Turns:
    """A lock for each subject that somebody waits for or works at; none is kept for the others."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: dict[str, int] = {}

    @asynccontextmanager
    async def turn(self, subject: str, backoff: Backoff) -> AsyncIterator[None]:
        """Have the key for oneself in this process. ConflictError when that does not come before the deadline."""
        lock = self._locks.setdefault(subject, asyncio.Lock())
        self._users[subject] = self._users.get(subject, 0) + 1
        try:
            try:
                async with asyncio.timeout(backoff.left_ms / 1000):
                    await lock.acquire()
            except TimeoutError as error:
                words = "other calls of this process were at this key until the deadline"
                raise ConflictError(words, hint="try again") from error
            try:
                yield
            finally:
                lock.release()
        finally:
            self._users[subject] -= 1
            if not self._users[subject]:
                del self._users[subject], self._locks[subject]
