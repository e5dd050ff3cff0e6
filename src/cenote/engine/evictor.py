"""Eviction: idle entries leave KV once SQL has them (I11; flow rules 2, 7 with F-aged).

One `STREAM.PURGE` below N per tick, N = min(first sequence younger than `state.ttl_s`, aged ack floor + 1). The floor
is one that was recorded at least the minimum eviction age ago, so every entry removed is older than that age, and
was flushed that long ago. All other facts are read on this connection, less than a second before the purge, which is
sent once and never repeated. SQL is asked who it is between the wait and the purge: a database that failed over or
went back in time since the shift began may have lost what the floor promises (`engine/lineage.py`).
"""

import asyncio
import logging
import time
from collections import deque

from cenote import limits, points
from cenote.engine.core import Core
from cenote.engine.lease import Board
from cenote.engine.lineage import Lineage
from cenote.errors import CenoteError

log = logging.getLogger("cenote.engine")


class Evictor:
    """Runs inside the active flusher's shift and uses that shift's durable only."""

    def __init__(self, core: Core, durable: str, lineage: Lineage | None = None) -> None:
        self._core = core
        self._durable = durable
        self._generation = core.link.generation
        self._floors: deque[tuple[float, int]] = deque()
        self._lineage = lineage or Lineage(core, Board())  # of its own: what it sees first must stay
        ttl_s = core.config.state.ttl_s
        self._tick_s = min(15.0, max(0.25, ttl_s / 8))

    async def run(self) -> None:
        """Tick until cancelled. A tick that cannot be made safely is left out, never hurried."""
        while True:
            try:
                await self.tick()
            except (CenoteError, TimeoutError) as error:
                log.debug("no eviction this time: %s", error)
            await asyncio.sleep(self._tick_s)

    async def tick(self) -> int:
        """Evict what may be evicted now; the number of entries removed."""
        core = self._core
        await self._lineage.demand()  # the first time, before any floor is recorded
        consumer = await core.consumer(self._durable)
        if consumer is None or core.link.generation != self._generation:
            return 0
        floor = self._aged(consumer.floor)
        if floor is None:
            return 0
        await self._lineage.demand()
        facts_at = time.monotonic()
        info = await core.stream.info()
        if info.created != core.epochs.created or info.messages == 0:
            return 0
        cutoff_us = (core.link.server_now_ms() - int(core.config.state.ttl_s * 1000)) * 1000
        young = await core.stream.first_since(cutoff_us)
        below = min(floor + 1, info.last_seq, info.last_seq if young is None else young)
        if below <= info.first_seq:
            return 0
        if points.armed:
            await points.hit("evict.decided")
        facts_age_ms = (time.monotonic() - facts_at) * 1000
        if core.link.generation != self._generation or facts_age_ms >= limits.PURGE_FACTS_AGE_MS_MAX:
            return 0
        assert below <= info.last_seq, "flow rule 2: N <= last_seq"
        purged = await core.stream.purge_below(below, generation=self._generation)
        core.counts.evicted += purged
        if points.armed:
            await points.hit("evict.purged")
        return purged

    def _aged(self, floor: int) -> int | None:
        """Record this floor; the newest one recorded at least the minimum eviction age ago (F-aged)."""
        now = time.monotonic()
        self._floors.append((now, floor))
        aged: int | None = None
        while self._floors and now - self._floors[0][0] >= limits.EVICT_AGE_MIN_MS / 1000:
            aged = self._floors.popleft()[1]
        if aged is not None:
            self._floors.appendleft((now - limits.EVICT_AGE_MIN_MS / 1000, aged))
        return aged
