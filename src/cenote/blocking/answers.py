"""Kept answers without `await`."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from cenote.blocking.thread import LoopThread
from cenote.engine.tiered import CacheCounts
from cenote.repositories import cached

T = TypeVar("T")


class Answers:
    """See `cenote.Store.cache`; threads may share it."""

    def __init__(self, thread: LoopThread, inner: cached.Answers) -> None:
        self._thread = thread
        self._inner = inner

    @property
    def counts(self) -> CacheCounts:
        """What became of this process's questions, by tier."""
        return self._inner.counts

    def get_or_load(
        self,
        key: str,
        loader: Callable[[], T],
        *,
        ttl: timedelta | None = None,
        stale: timedelta | float = cached.NOTHING,
        soft_timeout: timedelta | float | None = None,
        absent: timedelta | float = cached.NOTHING,
    ) -> T:
        """The answer, as it is kept or as `loader`, a plain function that may wait, makes it; see the other one."""

        async def load() -> T:
            return await asyncio.to_thread(loader)

        work = self._inner.get_or_load(key, load, ttl=ttl, stale=stale, soft_timeout=soft_timeout, absent=absent)
        return self._thread.run(work)

    def get(self, key: str, default: Any = None) -> Any:
        """The answer as it is kept; see the other `get`."""
        return self._thread.run(self._inner.get(key, default))

    def put(self, key: str, value: object, *, ttl: timedelta | None = None) -> None:
        """Keep an answer that was made elsewhere; see the other `put`."""
        self._thread.run(self._inner.put(key, value, ttl=ttl))

    def delete(self, key: str) -> None:
        """Forget an answer; see the other `delete`."""
        self._thread.run(self._inner.delete(key))

    def evict_expired(self) -> int:
        """Give back the memory of what is over; see the other one."""

        async def evict() -> int:
            return self._inner.evict_expired()

        return self._thread.run(evict())
