"""Eviction: idle entries leave KV once SQL has them (I11; flow rules 2, 7 with F-aged, 17).

One `STREAM.PURGE` below N per tick, N = min(first sequence younger than `state.ttl_s`, aged ack floor + 1). The floor
is one that was recorded at least the minimum eviction age ago, so every entry removed is older than that age, and
was flushed that long ago. All other facts are read on this connection, less than a second before the purge, which is
sent once and never repeated. SQL is asked who it is between the wait and the purge: a database that failed over or
went back in time since the shift began may have lost what the floor promises (`engine/lineage.py`).

When KV is nearly full, or the server refused a write for want of room, `state.ttl_s` is not waited for, and the oldest
entries leave until half of the room is free: but none before the minimum eviction age, and none that SQL lacks.
"""

import asyncio
import logging
import math
import time
from collections import deque

from cenote import limits, points
from cenote.engine.core import Core
from cenote.engine.fullness import PRESSED_SHARE, cry_subject
from cenote.engine.incarnation import durable_prefix, incarnation
from cenote.engine.lease import Board
from cenote.engine.lineage import Lineage
from cenote.errors import CenoteError
from cenote.kv.bucket import StreamInfo

log = logging.getLogger("cenote.engine")

_PRESSED_TICK_S = 0.25
_RELIEVED_SHARE = 0.5
_CRY_S = 5.0  # so long a refusal counts that some process met


class Evictor:
    """Runs inside the active flusher's shift and uses that shift's durable only."""

    def __init__(self, core: Core, durable: str, lineage: Lineage | None = None) -> None:
        self._core = core
        self._durable = durable
        self._generation = core.link.generation
        self._floors: deque[tuple[float, int]] = deque()
        self._lineage = lineage or Lineage(core, Board())  # of its own: what it sees first must stay
        ttl_s = core.config.state.ttl_s
        self._tick_s = min(15.0, max(_PRESSED_TICK_S, ttl_s / 8))
        self._cried_at = float("-inf")

    async def run(self) -> None:
        """Tick until cancelled. A tick that cannot be made safely is left out, never hurried."""
        ear = self._core.link.subscribe(cry_subject(self._core.names), self._cried)
        try:
            while True:
                try:
                    await self.tick()
                except (CenoteError, TimeoutError) as error:
                    log.debug("no eviction this time: %s", error)
                await self._pause()
        finally:
            ear.close()

    async def _pause(self) -> None:
        """Until the next tick, which comes sooner when KV fills up."""
        until = time.monotonic() + self._tick_s
        while time.monotonic() < until:
            await asyncio.sleep(min(_PRESSED_TICK_S, self._tick_s))
            if self._pressed(self._core.fullness.share):
                return

    def _cried(self, _subject: bytes, _reply: bytes, _header: bytes, _payload: bytes) -> None:
        self._cried_at = time.monotonic()

    def _pressed(self, share: float) -> bool:
        return share > PRESSED_SHARE or time.monotonic() - self._cried_at < _CRY_S

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
        if not self._durable.startswith(durable_prefix(core.epochs.newest, incarnation(core.link, info))):
            return 0  # in a cluster the stream may have another leader on the same connection
        below = min(floor + 1, info.last_seq, await self._first_kept(info))
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

    async def _first_kept(self, info: StreamInfo) -> int:
        """The first sequence that age, or under pressure the room that is needed, gives no reason to evict."""
        now_ms = self._core.link.server_now_ms()
        idle = await self._core.stream.first_since((now_ms - int(self._core.config.state.ttl_s * 1000)) * 1000)
        kept = info.last_seq if idle is None else idle
        bytes_max = info.config["max_bytes"]
        share = info.bytes / bytes_max if bytes_max > 0 else 0.0
        if not self._pressed(share):
            return kept
        old = await self._core.stream.first_since((now_ms - limits.EVICT_AGE_MIN_MS) * 1000)
        part = _RELIEVED_SHARE if share <= PRESSED_SHARE else 1 - _RELIEVED_SHARE / share
        surplus = info.first_seq + math.ceil((info.last_seq - info.first_seq) * part)
        return max(kept, min(surplus, info.last_seq if old is None else old))

    def _aged(self, floor: int) -> int | None:
        """Record this floor; the newest one recorded at least the minimum eviction age ago (F-aged)."""
        now = time.monotonic()
        self._floors.append((now, floor))
        aged: int | None = None
        age_s = (limits.EVICT_AGE_MIN_MS + self._core.skew_ms) / 1000
        while self._floors and now - self._floors[0][0] >= age_s:
            aged = self._floors.popleft()[1]
        if aged is not None:
            self._floors.appendleft((now - age_s, aged))
        return aged
