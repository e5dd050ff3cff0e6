"""Repair: KV and SQL are compared by version and content, and every difference is reported and mended (I1, I3).

What SQL lacks goes there through the fence, under its own version, like a redelivery; what KV shows too old is replaced
by a clean copy of the row under the condition that it is still the entry that was compared, as the mender does. Nothing
is deleted, and no version is invented. A run goes through the stream in the order of its sequences, notes how far it
has come, and is gone on with by whoever repairs next when its process dies.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final
from uuid import UUID

from cenote import limits, points
from cenote.engine import entries
from cenote.engine.blobs import moved
from cenote.engine.core import Core
from cenote.engine.differences import SIDE_BY_SIDE, Comparison, Difference, Item, Kind, item_of
from cenote.engine.fence import looker, pass_fence
from cenote.engine.hydrator import Hydrator
from cenote.engine.repair_account import Account, Place, Repaired, listed, place_of
from cenote.engine.waiting import until_mended
from cenote.errors import CenoteError, UnavailableError
from cenote.kv.deadline import patient
from cenote.kv.message import Message
from cenote.model import key as keys
from cenote.model.entry import Version
from cenote.model.uuid7 import uuid7
from cenote.retry import Backoff
from cenote.sql.errors import DataRefused
from cenote.sql.repairs import RepairTable
from cenote.sql.rows import Flushed, GcFloor, Guard, Heartbeat, Row

log = logging.getLogger("cenote.engine")

_INTO_SQL: Final = frozenset({Kind.SQL_MISSING, Kind.SQL_OLDER, Kind.TOMBSTONE})


class Repair:
    """Compares and mends, for one process."""

    def __init__(self, core: Core, hydrator: Hydrator) -> None:
        self._core = core
        self._hydrator = hydrator
        self.table = RepairTable(core.db)
        self._comparison = Comparison(core, self.table)

    async def run(
        self,
        *,
        dry_run: bool = False,
        agents: Sequence[keys.AgentRef] | None = None,
        reason: str = "asked",
        entries_per_s: float | None = None,
        progress: Callable[[Repaired], object] | None = None,
    ) -> Repaired:
        """Compare everything, or some agents, and mend what differs.

        Raises:
            UnavailableError: a server does not answer, or nobody flushes so that nothing is known to be settled; what
                was mended stays, and the next run goes on from there.
        """
        core = self._core
        await until_mended(core, core.config.kv.deadline_ms)
        names = None if agents is None else [keys.sql_key(agent.text) for agent in agents]
        guard = Guard(core.epochs.newest, core.incarnation)
        begun = await self.table.begin(uuid7(), reason, dry_run, names, guard, limits.REPAIR_SILENT_S)
        run = Account(begun, reason, dry_run)
        filters = [core.stream.prefix + ">"] if agents is None else [core.agent_filter(agent) for agent in agents]
        async with self._known(run):
            for subjects in filters:
                async for page in self._pages(subjects, run.after if agents is None else 0):
                    began_s = time.monotonic()
                    await self._page(run, page)
                    if progress is not None:
                        progress(run.told())
                    if entries_per_s is not None:
                        await asyncio.sleep(max(0.0, len(page) / entries_per_s - (time.monotonic() - began_s)))
            if agents is None:
                await self._references(run)
            await run.keep(self.table, ended=True)
        done = run.told()
        if done.found:
            log.warning("repair: %s differed, %s mended", done.found, done.mended)
        return done

    async def newest(self, limit: int) -> list[Repaired]:
        """The newest repairs."""
        return listed(await self.table.newest(limit))

    @asynccontextmanager
    async def _known(self, run: Account) -> AsyncIterator[None]:
        """Nobody takes it for left, however long a page takes or waits."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(limits.REPAIR_SILENT_S / 4)
                with suppress(CenoteError):  # progress finds out
                    await self.table.renew(run.begun.repair_id, run.begun.holder)

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()

    # --- pages ------------------------------------------------------------------------------------------------

    async def _pages(self, subjects: str, after: int) -> AsyncIterator[list[Message]]:
        """Entries in the order of their sequences, so many and so large as one comparison takes. Who is cut off asks
        again from there."""
        page: list[Message] = []
        size = 0
        async for message in self._core.live(subjects, after + 1):
            page.append(message)
            size += len(message.payload)
            if len(page) >= limits.REPAIR_PAGE_KEYS or size >= limits.REPAIR_PAGE_BYTES:
                yield page
                page, size = [], 0
        if page:
            yield page

    async def _page(self, run: Account, page: list[Message]) -> None:
        """Compare a page and mend it; again from its beginning when an answer was lost."""
        core = self._core
        backoff = Backoff(patient(core.config.retry), core.config.kv.deadline_ms)
        while True:
            try:
                left: set[Place] = set()
                generation, floor = core.link.generation, await self._floor()
                for items in _portions(core, [one for one in page if one.sequence <= floor]):
                    differ = await self._comparison.differences(items)
                    left |= await self._mend_portion(run, differ, generation)
                break
            except UnavailableError as error:
                await backoff.pause(error)
        core.counts.repairs.update(run.settle(left))
        run.scanned += len(page)
        run.after = page[-1].sequence
        await run.keep(self.table)
        if points.armed:
            await points.hit("repair.page")

    async def _mend_portion(self, run: Account, differ: Sequence[Difference], generation: int) -> set[Place]:
        """What of these differs still."""
        if self._count(run, differ):
            await run.keep(self.table)
        if points.armed and differ:
            await points.hit("repair.found")
        mended = set() if run.dry_run else await self._mend_all(differ, generation)
        if points.armed and mended:
            await points.hit("repair.mended")
        return {place_of(one) for one in differ if one.item.target.subject not in mended}

    def _count(self, run: Account, differ: Sequence[Difference]) -> list[str]:
        new = run.found(differ)
        if not run.dry_run:
            self._core.counts.differences.update(new)
        return new

    async def _references(self, run: Account) -> None:
        """Large values that are missing, of rows of which KV holds nothing: KV's own references were looked at."""
        core, after = self._core, (UUID(int=0), "")
        while rows := await self.table.references(after, limits.REPAIR_PAGE_KEYS):
            after = rows[-1].agent_id, rows[-1].key
            wanted = {moved(row.raw[1:], row.agent_id)[0]: row for row in rows}
            there = await self.table.blobs(list(wanted))
            gone = [row for blob, row in wanted.items() if blob not in there]
            names = await core.table.names([row.agent_id for row in gone]) if gone else {}
            for row in gone:
                agent = keys.agent_named(row.agent_id, names.get(row.agent_id))
                target = core.target(agent, keys.from_sql_key(row.key))
                if await core.leader_message(target) is None:
                    missing = Difference(Kind.BLOB_MISSING, Item(target, None, None, None))
                    self._count(run, [missing])
                    run.settle({place_of(missing)})

    async def _floor(self) -> int:
        """Up to where entries are settled."""
        core = self._core
        name = core.current_durable
        consumer = None if name is None else await core.consumer(name)
        if consumer is None:
            raise UnavailableError(
                "nobody has flushed since NATS started, so nothing is settled that could differ",
                hint="let a process flush: cenote serve",
            )
        return consumer.floor

    # --- mending ----------------------------------------------------------------------------------------------

    async def _mend_all(self, differ: Sequence[Difference], generation: int) -> set[str]:
        """The subjects of those that are as they should be now."""
        core, guard = self._core, Guard(self._core.epochs.newest, self._core.incarnation)
        if core.link.generation != generation:
            raise UnavailableError("the connection to NATS was replaced during a repair", tier="DISTRIBUTED_KV")
        mended = await self._into_sql([one.item for one in differ if one.kind in _INTO_SQL], guard)
        others = [one for one in differ if one.kind not in _INTO_SQL]
        for start in range(0, len(others), SIDE_BY_SIDE):
            some = others[start : start + SIDE_BY_SIDE]
            done = await asyncio.gather(*(self._mend(one, guard, generation) for one in some))
            mended |= {one.item.target.subject for one, was in zip(some, done, strict=True) if was}
        return mended

    async def _mend(self, one: Difference, guard: Guard, generation: int) -> bool:
        item = one.item
        if one.kind is Kind.UNREADABLE:
            return await self._quarantined(item, guard)
        if one.kind is Kind.KV_OLDER or (one.kind is Kind.CONTENT and item.stored is not None and item.stored.clean):
            return await self._into_kv(item, generation)
        if one.kind is Kind.CONTENT:
            assert item.row is not None
            return await self.table.rewrite(item.row, guard)
        return False  # bytes that nobody has

    async def _into_sql(self, items: Sequence[Item], guard: Guard) -> set[str]:
        """Through the fence, like a redelivery; one that PostgreSQL refuses is found by halving (I13)."""
        rows = [item.row for item in items if item.row is not None]
        if not rows:
            return set()
        heartbeat = self._heartbeat(max(rows, key=lambda row: (row.epoch, row.version)))

        async def write(some: list[Row], looked: GcFloor | None) -> Flushed | None:
            return await self._core.table.flush(some, guard, heartbeat, looked=looked)

        try:
            look = looker(self._core, {item.target.agent for item in items})
            overtaken = await pass_fence(self._core.table, rows, write, look)
        except DataRefused:
            if len(items) == 1:
                return {items[0].target.subject} if await self._quarantined(items[0], guard) else set()
            middle = len(items) // 2
            return await self._into_sql(items[:middle], guard) | await self._into_sql(items[middle:], guard)
        gone = {(row.agent_id, row.key) for row in _demand_held(overtaken)}
        return {one.target.subject for one in items if (one.target.agent.id, one.target.row_key) not in gone}

    async def _quarantined(self, item: Item, guard: Guard) -> bool:
        """Its exact bytes, shown as a dead letter (rule 14)."""
        core, message = self._core, item.message
        assert message is not None
        if item.row is None:
            version = Version(core.epochs.at(message.time_us), message.sequence)
            row = Row(
                item.target.agent.id, item.target.row_key, None, message.payload, version.revision, version.epoch,
                message.time_us, False, True, None,
            )  # fmt: skip
        else:
            row = entries.exact(item.row)
        heartbeat = self._heartbeat(row)

        async def write(_: list[Row], looked: GcFloor | None) -> Flushed | None:
            return await core.table.flush_one_quarantined(
                row, guard, heartbeat, reason="found by a repair", envelope="", looked=looked
            )

        return not _demand_held(await pass_fence(core.table, [row], write, looker(core, {item.target.agent})))

    async def _into_kv(self, item: Item, generation: int) -> bool:
        core, message, stored = self._core, item.message, item.stored
        assert message is not None
        t0_ms = core.link.server_now_ms()
        row = await core.table.read(item.target.agent.id, item.target.row_key)
        if row is None or stored is None:
            return False
        same_life = stored.version.epoch == row.epoch and not stored.clean
        if same_life and stored.version.revision < row.version and message.time_us > row.kv_time_us:
            return False  # a write of another life, for which an epoch must begin first (rule 3)
        copy = await self._hydrator.install(
            item.target.wire, entries.from_row(row), t0_ms=t0_ms, over=message.sequence, generation=generation
        )
        return copy is not None

    def _heartbeat(self, row: Row) -> Heartbeat:
        return Heartbeat(self._core.writer_id, self._core.epochs.store_id, row.version, row.kv_time_us)


class RepairUpkeep:
    """What the process that flushes does by itself: a slow comparison of everything, now and then."""

    def __init__(self, core: Core, repair: Repair) -> None:
        self._core = core
        self._repair = repair
        self._settings = core.config.repair
        self.every_s = self._settings.every_s
        self.late_every_s = limits.REPAIR_LATE_EVERY_S

    async def tend(self) -> None:
        """Compare everything, slowly."""
        if self._settings.enabled:
            await self._repair.run(reason="background", entries_per_s=self._settings.entries_per_s)
            await self._repair.table.forget(limits.REPAIR_KEPT_S, limits.REPAIR_FINDINGS_KEPT_S)

    async def look_at_late(self) -> None:
        """Compare those whose writes were late since the last time."""
        late = self._core.late.take()
        if not late or not self._settings.enabled:
            return
        names = await self._core.table.names(late)
        agents = [keys.agent_named(one, names.get(one)) for one in late]
        await self._repair.run(agents=agents, reason="violation", entries_per_s=self._settings.entries_per_s)


def _portions(core: Core, page: Sequence[Message]) -> Iterator[list[Item]]:
    """What the entries say, as much as one statement takes: small compressed entries may be large texts (I15)."""
    items: list[Item] = []
    size = 0
    for message in page:
        item = item_of(core, message)
        if item is None:
            continue
        items.append(item)
        size += len(item.row.value or "") if item.row is not None else 0
        if size >= limits.FLUSH_BYTES_MAX:
            yield items
            items, size = [], 0
    if items:
        yield items


def _demand_held(overtaken: list[Row] | None) -> list[Row]:
    if overtaken is None:
        raise UnavailableError("the epoch or the server start is another one: the repair begins anew")
    return overtaken
