"""The index of content search, as `sql.search_index` wants it (`sql/search.py`).

The process that flushes keeps it, beside its flushes and in transactions of its own: so its setting is the one that
counts. Processes that differ take turns with the lease; lest they build and drop in turns, an index goes only once it
has not been wanted for a minute on end.
"""

import logging
import time
from typing import Final

from cenote import limits
from cenote.engine.core import Core
from cenote.sql.search import SearchState, SearchTable

log = logging.getLogger("cenote.engine")

EVERY_S: Final = 0.5
_LOOK_S: Final = 30.0  # so often whoever wants no index looks for one, or finds a lost one
_REST_S: Final = 5.0  # after a failure
_BUDGET_S: Final = 2.0  # one turn of the projection; it goes on at the next


class SearchIndex:
    """Makes, feeds and drops it."""

    def __init__(self, core: Core, drop_s: float = limits.SEARCH_DROP_S) -> None:
        self._wanted = core.config.sql.search_index
        self._table = SearchTable(core.db)
        self._look_at = 0.0
        self._feed_at = 0.0
        self._unwanted_since: float | None = None
        self._drop_s = drop_s

    async def tend(self) -> None:
        """One turn. Raises what PostgreSQL says; after that it waits a while."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            state = await self._table.state()
            await self._make(state)
            await self._drop(state, now)
        if self._wanted == "projection" and now >= self._feed_at:
            self._feed_at = now + _REST_S
            await self._feed(now)
            self._feed_at = now

    async def _make(self, state: SearchState) -> None:
        if self._wanted == "projection" and not state.projected:
            await self._table.begin()
        elif self._wanted == "inline" and not state.inline:
            log.info("content search gets its index on the state")
            await self._table.build()

    async def _drop(self, state: SearchState, now: float) -> None:
        inline = self._wanted != "inline" and state.inline is not None
        projected = self._wanted != "projection" and state.projected is not None
        if not inline and not projected:
            self._unwanted_since = None
            if self._wanted != "projection":
                await self._empty(now)
            return
        if self._unwanted_since is None:
            self._unwanted_since = now
        if now - self._unwanted_since < self._drop_s:
            return
        if inline:
            log.info("the index of content search on the state is dropped: nobody wants it")
            await self._table.remove()
        if projected:
            log.info("the projection of content search ends: nobody wants it")
            await self._table.end()
            await self._empty(now)

    async def _feed(self, began: float) -> None:
        while await self._table.step():
            if time.monotonic() - began > _BUDGET_S:
                return
        await self._table.expire()

    async def _empty(self, began: float) -> None:
        while await self._table.empty():
            if time.monotonic() - began > _BUDGET_S:
                self._look_at = 0.0
                return
