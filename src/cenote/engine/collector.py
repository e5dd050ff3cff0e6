"""Collection: what nobody needs any more leaves SQL (I2, I15; flow rules 12, 20, 21).

A bounded sweep that the active flusher makes: expired rows become tombstones; tombstones go once SQL has had them for
`state.tombstone_s`, the flusher is past them, and KV holds nothing of their key; blobs go after a day without a
reference in SQL, in an open dead letter or in KV; so do the heartbeats of flushers long gone. Pages with pauses
between them, no long transaction, and every step may be repeated or cut off anywhere.

KV is looked at before anything goes, but what makes collection safe is SQL's own: the floor, which no flush inserts
below, and the version of each row.
"""

import asyncio
import logging
from uuid import UUID

import msgspec

from cenote import limits, points
from cenote.engine import entries
from cenote.engine.blobs import reference_id
from cenote.engine.core import Core, reading
from cenote.engine.entries import Target
from cenote.errors import CenoteError, UnavailableError
from cenote.kv.message import Message
from cenote.model import key as keys
from cenote.sql.garbage import FIRST_ID, Blob, Tombstone
from cenote.sql.rows import Guard

log = logging.getLogger("cenote.engine")

_PAGE = 256
_LOOK_KEYS = 16  # keys that KV is asked for at once: their values come along
_PAUSE_S = 0.02


class Collector:
    """Runs inside the active flusher's shift, under its guard. `flights` is what its flushes run under: they stand
    aside while the floor is raised, which would have to wait for a moment without any."""

    def __init__(self, core: Core, durable: str, guard: Guard, flights: asyncio.Semaphore, flights_max: int) -> None:
        self._core = core
        self._durable = durable
        self._guard = guard
        self._flights = flights
        self._flights_max = flights_max
        self._generation = core.link.generation
        self._tick_s = min(limits.SWEEP_S_MAX, max(0.25, core.config.state.tombstone_s / 8))

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(self._tick_s)
            try:
                await self.sweep()
            except (CenoteError, TimeoutError) as error:
                log.debug("a sweep was cut off: %s", error)

    async def sweep(self) -> None:
        """One pass over everything that may go."""
        counts = self._core.counts
        before = counts.expired, counts.collected, counts.blobs_collected
        await self._expire()
        await self._collect_tombstones()
        await self._collect_blobs()
        await self._core.table.forget_flushers(limits.FLUSHER_FORGOTTEN_S)
        if self._core.trim is not None:
            await self._core.trim()
        told = counts.expired - before[0], counts.collected - before[1], counts.blobs_collected - before[2]
        if any(told):
            log.info("a sweep: %d rows had expired, %d tombstones and %d blobs left PostgreSQL", *told)

    # --- expired rows ---------------------------------------------------------------------------------------

    async def _expire(self) -> None:
        core = self._core
        while rows := await core.table.expired(core.link.server_now_ms() * 1000, _PAGE):
            done = await core.table.expire(rows)
            core.counts.expired += done
            if done == 0:
                return  # all of them are being written: the next sweep will see
            await asyncio.sleep(_PAUSE_S)

    # --- tombstones -----------------------------------------------------------------------------------------

    async def _collect_tombstones(self) -> None:
        core, after = self._core, (FIRST_ID, "")
        age_s = core.config.state.tombstone_s
        consumer = await core.consumer(self._durable)
        if consumer is None:
            return
        while True:
            page = await core.table.tombstones(age_s, self._guard.epoch, consumer.floor, after, _PAGE)
            dead = await self._absent([one for one in page if one.ripe])
            if dead:
                if points.armed:
                    await points.hit("collect.found")
                core.counts.collected += await self._quietly_collect(dead)
                if points.armed:
                    await points.hit("collect.done")
            if len(page) < _PAGE:
                return
            after = page[-1].agent_id, page[-1].key
            await asyncio.sleep(_PAUSE_S)

    async def _absent(self, tombstones: list[Tombstone]) -> list[Tombstone]:
        """Those whose key KV does not hold: what it holds would be flushed again, or is about to be."""
        targets = {one: self._target(one.name, one.agent_id, one.key) for one in tombstones}
        held = await self._in_kv([target for target in targets.values() if target is not None])
        return [one for one, target in targets.items() if target is not None and target.subject not in held]

    async def _quietly_collect(self, dead: list[Tombstone]) -> int:
        taken = 0
        try:
            while taken < self._flights_max:
                await self._flights.acquire()
                taken += 1
            gone = await self._core.table.collect(self._guard, dead)
        finally:
            for _ in range(taken):
                self._flights.release()
        if gone is None:
            raise UnavailableError("the epoch or the server start is another one: nothing was collected")
        return gone

    # --- blobs ----------------------------------------------------------------------------------------------

    async def _collect_blobs(self) -> None:
        core, after = self._core, FIRST_ID
        while page := await core.table.blobs(limits.BLOB_UNREFERENCED_S, after, _PAGE):
            after = page[-1].id
            unreferenced = await self._unreferenced([blob for blob in page if not blob.referred])
            fresh = [blob.id for blob in page if blob.id in unreferenced and not blob.marked]
            again = [blob.id for blob in page if blob.id not in unreferenced and blob.marked]
            ripe = [blob.id for blob in page if blob.id in unreferenced and blob.ripe]
            for ids, unreferred in ((fresh, True), (again, False)):
                if ids:
                    await core.table.mark_blobs(ids, unreferenced=unreferred)
            if ripe:
                core.counts.blobs_collected += await core.table.collect_blobs(
                    self._guard, ripe, limits.BLOB_UNREFERENCED_S
                )
            await asyncio.sleep(_PAUSE_S)

    async def _unreferenced(self, blobs: list[Blob]) -> set[UUID]:
        """Blobs that KV does not refer to either, of keys whose newest entry SQL has: what a flusher that sleeps may
        still hold is older, and the fence refuses it."""
        targets = {blob: self._target(blob.name, blob.agent_id, blob.key) for blob in blobs}
        held = await self._in_kv([target for target in targets.values() if target is not None])
        return {
            blob.id
            for blob, target in targets.items()
            if target is not None and self._settled(blob, held.get(target.subject))
        }

    def _settled(self, blob: Blob, message: Message | None) -> bool:
        if message is None:
            return True
        stored = entries.listed(message, self._core.epochs)
        if stored.codec == entries.UNREADABLE or (stored.codec == entries.BLOB and reference_id(stored) == blob.id):
            return False
        return stored.version <= (blob.epoch or 0, blob.version or 0)

    # --- KV -------------------------------------------------------------------------------------------------

    def _target(self, name: str | None, agent_id: UUID, key: str) -> Target | None:
        """Where KV would hold a row; None while the name behind an id is not registered yet."""
        if name is None and agent_id.version == 8:
            return None
        agent = keys.agent_named(agent_id, name)
        return self._core.target(agent, keys.from_sql_key(key))

    async def _in_kv(self, targets: list[Target]) -> dict[str, Message]:
        """What KV holds of these keys, by subject, without the bodies of large values."""
        core = self._core
        held: dict[str, Message] = {}
        for start in range(0, len(targets), _LOOK_KEYS):
            with reading():
                found, _ = await core.messages(targets[start : start + _LOOK_KEYS])
            for subject, message in found.items():
                large = len(message.payload) >= limits.KIB
                held[subject] = msgspec.structs.replace(message, payload=b"") if large else message
        if core.link.generation != self._generation:
            raise UnavailableError("the connection was replaced while KV was looked at")
        return held
