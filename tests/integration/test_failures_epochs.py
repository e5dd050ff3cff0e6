"""KV goes back in time: which life of the stream a message belongs to (I1, I3; flow rule 3, F-inc, F-gen). Each test
runs again without its rule."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from kv_past import again, nobody_flushes, past

import cenote
from cenote import limits
from cenote.engine import core, hand, mender, rewind, shift
from cenote.engine.core import Core
from cenote.engine.epoch import Epochs
from cenote.engine.mender import Mender
from cenote.sql.loader import Queries
from cenote.sql.state import StateTable
from cenote.testing import TestServers
from witness import Violation, demand, eventually, in_kv, reached, tables, toothed

pytestmark = pytest.mark.judge


# --- the rules, taken out -----------------------------------------------------------------------------------


def the_epoch_by_time(patch: pytest.MonkeyPatch) -> None:
    """Every message is of the newest epoch that the client knows."""
    patch.setattr(Epochs, "at", lambda self, time_us: self.newest)


def the_guard(patch: pytest.MonkeyPatch) -> None:
    """A flush is committed whatever has begun since its batch was fetched."""
    plain, guard = Queries.__getitem__, "epoch = $1 AND incarnation = $2 FOR SHARE"
    always = "incarnation IS NOT NULL AND ($1::bigint, $2::text) IS NOT NULL FOR SHARE"
    patch.setattr(Queries, "__getitem__", lambda self, name: plain(self, name).replace(guard, always))


def the_order_of_times(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks whether sequences and times agree."""

    async def fine(self: Mender, message: Any) -> None: ...

    patch.setattr(rewind, "later_life", lambda row, held: False)
    patch.setattr(rewind.Envelope, "odd", lambda self, taken: [])
    patch.setattr(Mender, "_disagrees", fine)


def every_detector(patch: pytest.MonkeyPatch) -> None:
    """Nor where the stream ends."""
    the_order_of_times(patch)
    plain = mender.take_over

    async def take_over(core: Core, epoch: int, start: str, seen_sequence: int, last_sequence: int) -> Any:
        return await plain(core, epoch, start, 0, 1 << 60)

    patch.setattr(mender, "take_over", take_over)
    patch.setattr(shift, "take_over", take_over)


def what_was_acknowledged(patch: pytest.MonkeyPatch) -> None:
    """A process counts only what the leader told when it was asked."""
    patch.setattr(Core, "met_sequence", property(lambda core: core.seen_sequence))


def a_durable_of_each_start(patch: pytest.MonkeyPatch) -> None:
    """One durable for ever."""
    for user in (shift, core):
        patch.setattr(user, "durable_prefix", lambda epoch, start: "flush_for_ever")


# --- rule 3 -------------------------------------------------------------------------------------------------


@toothed(the_guard)
async def test_a_a_frozen_flusher_commits_nothing_of_a_lost_tail(cenote_servers: TestServers, tmp_path: Path) -> None:
    """Its statement, with an entry that the stream has lost, arrives after the mending."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store, kv.open() as other, tables(cenote_servers, store) as sql:
            agent = store.agent("a")
            await agent.put("k", "kept")
            await store.flush(10)
            kv.remember()
            frozen, thawed = await _freeze_next_flush(store, other)
            await agent.put("k", "lost")
            await reached(frozen.is_set, "a frozen flush")
            await kv.rewind(store, other)
            await other.agent("a").put("new", 1)
            await other.flush(20)
            late = thawed()
            assert (await late) is None or True
            row, held = await sql.value(agent, "k"), await other.agent("a").get("k")
            demand(row == '"kept"' and held == "kept", f"I1, I3: SQL has {row}, KV has {held!r}")


async def _freeze_next_flush(*stores: cenote.store.Store) -> tuple[asyncio.Event, Any]:
    """The next statement of whoever flushes stays in its hands; the second result lets it go, and is its outcome."""
    frozen = asyncio.Event()
    held: list[Any] = []
    tables = [store._core.table for store in stores]
    plain = StateTable.flush

    def freezing(table: StateTable) -> Any:
        async def flush(*arguments: Any, **options: Any) -> Any:
            if frozen.is_set():
                return await plain(table, *arguments, **options)
            held.append((table, arguments, options))
            frozen.set()
            return await asyncio.Event().wait()  # until it is cancelled with its shift: the process notices nothing

        return flush

    for table in tables:
        table.flush = freezing(table)  # type: ignore[method-assign]  # one store's, not the class's

    def thaw() -> Any:
        table, arguments, options = held[0]
        return plain(table, *arguments, **options)

    return frozen, thaw


@toothed(the_epoch_by_time)
async def test_b_an_entry_that_comes_back_is_not_new(cenote_servers: TestServers, tmp_path: Path) -> None:
    """SQL holds what `durability="sql"` promised; KV goes back and delivers the entry before it once more."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store, tables(cenote_servers, store) as sql:
            await sql.audit()
            agent = store.agent("b")
            await agent.put("j", "old")
            kv.remember()
            for number in range(10):
                await agent.put(f"more{number}", number)
            await agent.put("j", "promised", durability="sql")
            await kv.rewind(store)
            await agent.put("fresh", 1)
            await store.flush(20)
            await sql.demand_monotonic()
            demand(await sql.value(agent, "j") == '"promised"', "I1, I3: SQL went back")
            demand(await agent.get("j") == "promised", "I1: KV hides what SQL holds")


@toothed(every_detector)
async def test_c_new_writes_below_the_high_water_reach_sql(cenote_servers: TestServers, tmp_path: Path) -> None:
    """Their numbers are those of a lost tail that SQL holds; and a version from before matches none of them."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store, tables(cenote_servers, store) as sql:
            agent = store.agent("c")
            await agent.put("first", 0)
            kv.remember()
            lost = [await agent.put("k", number) for number in range(5)]
            await store.flush(10)
            async with nobody_flushes(store):
                await kv.rewind(store)
                for number in range(5):
                    await agent.put("k", f"new{number}")  # the last one has the number of the last one lost
            await eventually(lambda: _is(sql, agent, "k", '"new4"'), "I1, I3: a new write never reached SQL")
            try:
                await agent.put("k", "over", if_version=lost[-1])
            except cenote.ConflictError:
                pass
            else:
                raise Violation("I6, I12: a version of a lost write matched another one")
            assert lost[-1].version < (await agent.entry("k")).version


@pytest.fixture
def no_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks the leader but at a connection's start."""
    monkeypatch.setattr(limits, "PROBE_INTERVAL_MS", 60_000)
    monkeypatch.setattr(limits, "PROBE_CALM_MS", 60_000)


@toothed(what_was_acknowledged)
async def test_a_tail_that_only_its_writer_knew_begins_an_epoch(
    cenote_servers: TestServers, tmp_path: Path, no_probes: None
) -> None:
    """SQL has nothing of it, and nobody has asked the leader since: the writer was told its numbers by the acks alone,
    and a version from before must match nothing that is written under them again."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store:
            agent = store.agent("w")
            await agent.put("k", "kept")
            await store.flush(10)
            kv.remember()
            async with nobody_flushes(store):
                lost = [await agent.put("k", number) for number in range(5)]
                await kv.rewind(store)
            await store.flush(20)  # a shift has begun
            for number in range(5):
                await agent.put("k", f"new{number}")  # the last one has the number of the last one lost
            try:
                await agent.put("k", "over", if_version=lost[-1])
            except cenote.ConflictError:
                pass
            else:
                raise Violation("I6, I12: a version of a lost write matched another one")


@toothed(the_order_of_times)
async def test_an_overtaken_rewind_is_found(cenote_servers: TestServers, tmp_path: Path) -> None:
    """New writes have passed the high water before anybody compared."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store, tables(cenote_servers, store) as sql:
            agent = store.agent("overtaken")
            await agent.put("first", 0)
            kv.remember()
            for number in range(5):
                await agent.put("k", number)
            await store.flush(10)
        async with kv.open(flush__enabled=False) as writer:
            await asyncio.to_thread(kv.go_back)
            await again(writer, 1)
            await writer.agent("overtaken").put("k", "new")
            for number in range(10):
                await writer.agent("overtaken").put(f"more{number}", number)
        async with kv.open() as store, tables(cenote_servers, store) as sql:
            agent = store.agent("overtaken")
            await eventually(lambda: _is(sql, agent, "k", '"new"'), "I1, I3: a new write never reached SQL")
            demand(await agent.get("k") == "new", "I1: a new write was mended away")
            assert (await store.stats()).epoch == 2
            await store.flush(10)


@toothed(the_order_of_times)
async def test_a_message_of_a_later_life_that_comes_late(cenote_servers: TestServers, tmp_path: Path) -> None:
    """It was in another flusher's hands while newer ones were flushed; the fence refuses it, and it is not older."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store, tables(cenote_servers, store) as sql:
            agent = store.agent("late")
            await agent.put("k", "first")
            await store.flush(10)
            # SQL is made to hold a lost tail: the row's version above what the stream will give, its time before it.
            await sql.link.execute(f"UPDATE {sql.schema}.state SET version = version + 5, value = '\"tail\"'")
            await agent.put("k", "acked")
            await eventually(lambda: _is(sql, agent, "k", '"acked"'), "I1: an acknowledged write never reached SQL")
            await store.flush(20)
            assert (await store.stats()).epoch == 2


def the_look_at_the_leader(patch: pytest.MonkeyPatch) -> None:
    """What disagrees is dropped unseen."""

    async def stale(core: Core, odd: Any, *, generation: int) -> list[Any]:
        return [delivery for delivery, _ in odd]

    patch.setattr(hand, "stale", stale)


@toothed(the_look_at_the_leader)
async def test_a_step_of_the_servers_clock_is_no_rewind(cenote_servers: TestServers, tmp_path: Path) -> None:
    """Higher sequences with earlier times than what was flushed: they go by their sequence."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store, tables(cenote_servers, store) as sql:
            agent = store.agent("clock")
            await agent.put("k", "before")
            await store.flush(10)
            async with nobody_flushes(store):
                await sql.link.execute(f"UPDATE {sql.schema}.flushers SET kv_time = kv_time + interval '1 minute'")
            for number in range(5):
                await agent.put("k", number)
            await eventually(lambda: _is(sql, agent, "k", "4"), "I1: a write after the step never reached SQL")
            await store.flush(10)
            assert (await store.stats()).epoch == 1


@toothed(a_durable_of_each_start)
async def test_an_entry_below_the_floor_is_delivered_again(cenote_servers: TestServers, tmp_path: Path) -> None:
    """F-gen: the consumer's state is newer than the stream's, and SQL has never seen the entry."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store, tables(cenote_servers, store) as sql:
            agent = store.agent("floor")
            await agent.put("before", 0)
            await store.flush(10)
            async with nobody_flushes(store):
                durable = store._core.durable_name
                await agent.put("k", "never flushed")
                await _settle_all(store, str(durable))
                before = store._core.link.generation
                await asyncio.to_thread(kv.server.stop)  # in order, so that the consumer's state is kept
                kv.server.start()
                await again(store, before)
                assert await in_kv(agent, "k") is not None
            await eventually(lambda: _is(sql, agent, "k", '"never flushed"'), "I1, I11: below the floor for ever")


async def _settle_all(store: cenote.store.Store, durable: str) -> None:
    """Acknowledge what the durable has to give, as the overwritten successor of each entry would have."""
    link, replies = store._core.link, list[bytes]()
    inbox = link.new_inbox()
    subscription = link.subscribe(inbox, lambda subject, reply, header, payload: replies.append(reply))
    link.send(f"$JS.API.CONSUMER.MSG.NEXT.{store._core.stream.name}.{durable}", inbox.encode(), b'{"batch": 10}')
    await reached(lambda: replies, "a delivery")
    for reply in replies:
        link.send(reply, b"", b"")

    async def settled() -> bool:
        consumer = await store._core.consumer(durable)
        return consumer is not None and consumer.pending + consumer.ack_pending == 0

    await reached(settled, "a floor above the entry")
    subscription.close()


async def _is(sql: Any, agent: Any, key: str, text: str) -> bool:
    return bool(await sql.value(agent, key) == text)
