"""PostgreSQL goes back in time: what KV still holds comes back, whoever was told so (I1, I11; flow rules 5, 25)."""

import asyncio
import os
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import rewinds
from rewinds import Arena

import cenote
from cenote.engine import batch, belonging, hand, rewind
from cenote.engine.barrier import Barrier
from cenote.engine.lineage import Lineage
from cenote.sql.changes import ChangeTable
from cenote.sql.pool import Database
from witness import demand, evict_all, in_kv, reached, toothed

SEED = int(os.environ.get("FAULT_SEED") or 0)
ROUNDS = int(os.environ.get("FAULT_ROUNDS") or 20)


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with rewinds.arena(tmp_path_factory.mktemp("arena")) as servers:
        yield servers


# --- the rule, taken out ------------------------------------------------------------------------------------


def the_mark_of_the_database(patch: pytest.MonkeyPatch) -> None:
    """Nobody asks PostgreSQL who it is."""

    async def durable(self: Lineage, prefix: str, known: str | None) -> str:
        return prefix

    async def nothing(self: Any) -> bool:
        return True

    patch.setattr(Lineage, "durable", durable)
    patch.setattr(Lineage, "demand", nothing)
    patch.setattr(Barrier, "_of_this_database", nothing)


def clean_copies_in_the_first_pass(patch: pytest.MonkeyPatch) -> None:
    """What was made from a row of SQL is never flushed back."""
    plain = batch.build
    patch.setattr(hand, "build", lambda deliveries, epochs, prefix, _: plain(deliveries, epochs, prefix, 0))


def the_number_of_commits(patch: pytest.MonkeyPatch) -> None:
    """A database that was not restarted is believed to be what it was."""
    patch.setattr(Lineage, "_went_back", lambda *_: False)


def the_memory_of_the_stream(patch: pytest.MonkeyPatch) -> None:
    """What PostgreSQL says of epochs is all there is."""
    patch.setattr(belonging, "_lost", lambda *_: [])


def the_time_of_a_commit(patch: pytest.MonkeyPatch) -> None:
    """A position is a number, as a bigserial is."""
    plain = ChangeTable.commits

    async def commits(self: ChangeTable, after: Any, limit: int) -> Any:
        found = await plain(self, None, 10_000)
        return [one for one in found or [] if after is None or one.number > after.number][:limit]

    patch.setattr(ChangeTable, "commits", commits)


# --- one entry ----------------------------------------------------------------------------------------------


async def _idle_past_its_time(store: cenote.Store, key: str) -> None:
    """Until the evictor has removed the key, or would have."""
    agent = store.agent("idle")

    async def evicted() -> bool:
        await agent.put("the last entry is never evicted", 1)
        return await in_kv(agent, key) is None

    await reached(evicted, "the eviction")


@toothed(the_mark_of_the_database)
@pytest.mark.parametrize("flusher", ["alive", pytest.param("another", marks=pytest.mark.judge)])
async def test_a_flushed_entry_whose_row_is_lost_is_flushed_again(flusher: str, arena: Arena) -> None:
    """k@100 is in SQL and acknowledged; SQL goes back to before that; k is evicted when its time is over."""
    settings = arena.settings(state__ttl_s=2)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(cenote.open(**settings))
        await first.agent("idle").put("before", 0, durability="sql")
        await arena.image_sql()
        receipt = await first.agent("idle").put("k", 100, durability="sql")
        await asyncio.sleep(0.9)  # the flusher looks each 0.4 s how many commits there are
        if flusher == "another":  # nobody lives through it
            await stack.aclose()
            await arena.put_back_sql()
            first = await stack.enter_async_context(cenote.open(**settings))
        else:
            await arena.put_back_sql()
        await first.flush(20)
        row = await first._core.table.read(first.agent("idle").id, "k")
        demand(row is not None, "I1: flush() answers, and SQL has no row of an acknowledged write")
        assert row is not None
        demand((row.epoch, row.version) == tuple(receipt.version), "I3: the row came back as another version")
        await _idle_past_its_time(first, "k")
        async with cenote.open(**settings) as other:
            demand(await other.agent("idle").get("k") == 100, "I1, I11: evicted, and lost")
        assert (await first.stats()).sql_commits_lost >= 1


@pytest.mark.judge
@toothed(the_mark_of_the_database)
async def test_a_failover_to_a_standby_that_lags_loses_nothing_that_kv_holds(arena: Arena) -> None:
    """Replication is asynchronous: what PostgreSQL said it had committed was never on the server that is promoted."""
    settings = arena.settings(state__ttl_s=2)
    async with cenote.open(**settings) as store:
        agent = store.agent("idle")
        await agent.put("before", 0, durability="sql")
        timeline = (await store._core.db.identity()).timeline
        await arena.begin_standby()
        await agent.put("k", 100, durability="sql")
        late: list[cenote.Receipt] = []

        async def while_nobody_takes_writes() -> None:
            late.append(await agent.put("late", 1))
            with pytest.raises(cenote.UnavailableError):
                await store._core.db.identity()  # a standby is nobody's other database

        await arena.fail_over(while_nobody_takes_writes)
        await late[0].durable(20)
        assert (await store._core.db.identity()).timeline == timeline + 1
        await store.flush(20)
        await _idle_past_its_time(store, "k")
        async with cenote.open(**settings) as other:
            demand(await other.agent("idle").get("k") == 100, "I1, I11: a failover lost a write that KV had")
            assert await other.agent("idle").get("late") == 1


@pytest.mark.judge
@toothed(the_mark_of_the_database, clean_copies_in_the_first_pass)
async def test_a_copy_brings_back_the_row_that_it_was_made_from(arena: Arena) -> None:
    """The original left KV long ago; a read brought it back as a clean copy, which no flusher takes for a write."""
    settings = arena.settings(state__ttl_s=2)
    async with cenote.open(**settings) as store:
        agent = store.agent("idle")
        await agent.put("before", 0, durability="sql")
        await arena.image_sql()
        receipt = await agent.put("k", 100, durability="sql")
        await agent.put("gone", 1, durability="sql")
        await agent.delete("gone")
        assert await evict_all(store) >= 2
        async with cenote.open(**settings, flush__enabled=False) as reader:
            assert await reader.agent("idle").get("k") == 100
            assert await reader.agent("idle").get("gone") is None
        message = await in_kv(agent, "k")
        assert message is not None
        assert message.sequence > receipt.version.revision, "there is no copy"
        await arena.put_back_sql()
        await store.flush(20)
        await _idle_past_its_time(store, "k")
        async with cenote.open(**settings) as other:
            entry = await other.agent("idle").get("k")
            demand(entry == 100, "I1: a copy hid that its row was lost, and was evicted")
            assert (await other.agent("idle").entry("k")).version == receipt.version
            demand(await other.agent("idle").get("gone") is None, "I2: a deleted key came back")


@pytest.mark.judge
@toothed(the_number_of_commits)
async def test_a_dump_restored_into_a_running_server_is_noticed(arena: Arena) -> None:
    """No restart, no other timeline: only the commits are fewer than they were."""
    settings = arena.settings(state__ttl_s=2)
    async with cenote.open(**settings) as store:
        agent, schema = store.agent("idle"), store.config.names.schema("agents")
        await agent.put("before", 0, durability="sql")
        tables = ("state", "flush_head", "flush_log")
        db = Database(store._core.config.sql, store._core.config.retry, store._core.names)
        for name in tables:
            await db.execute(f"CREATE TABLE {schema}.dump_{name} AS TABLE {schema}.{name}")
        await agent.put("k", 100, durability="sql")
        await asyncio.sleep(1)  # the flusher looks each 0.4 s
        await db.execute(
            "DO $$ BEGIN "
            + "".join(
                f"DELETE FROM {schema}.{name}; INSERT INTO {schema}.{name} SELECT * FROM {schema}.dump_{name}; "
                for name in tables
            )
            + "END $$"
        )
        await db.close()
        await asyncio.sleep(1)
        await _idle_past_its_time(store, "k")
        async with cenote.open(**settings) as other:
            demand(await other.agent("idle").get("k") == 100, "I1: a restored dump lost a write that KV had")


@pytest.mark.judge
async def test_a_restart_loses_nothing_and_is_no_alarm(arena: Arena) -> None:
    """Another start of the same database: all passes the fence once more, and nothing changes."""
    async with cenote.open(**arena.settings()) as store:
        agent = store.agent("idle")
        receipt = await agent.put("k", 1, durability="sql")
        durable = store._core.durable_name
        await asyncio.to_thread(arena.pg.stop)
        await asyncio.to_thread(arena.pg.start)
        await reached(lambda: store._core.durable_name not in (durable, None), "the next durable")
        await store.flush(20)
        row = await store._core.table.read(agent.id, "k")
        assert row is not None
        assert row.version == receipt.version.revision
        assert (await store.stats()).sql_commits_lost == 0


@toothed(the_time_of_a_commit)
async def test_a_feed_never_goes_on_over_commits_that_were_lost(arena: Arena) -> None:
    """PostgreSQL goes back and gives the numbers of its lost commits to others: a follower who stood on one of them
    would never hear of those below."""
    settings = arena.settings()
    async with cenote.open(**settings) as store:
        agent = store.agent("feed")
        await agent.put("before", 0, durability="sql")
        await arena.image_sql()
        for number in range(3):
            await agent.put(f"lost{number}", number, durability="sql")
        position = ""
        async for change in store.changes(0):
            position = change.position
            if change.entry.key == "lost2":
                break
        await arena.put_back_sql()
        await store.flush(20)
        for number in range(5):
            await agent.put(f"new{number}", number, durability="sql")
        told: list[str] = []
        try:
            async with asyncio.timeout(10):
                async for change in store.changes(position):
                    told.append(change.entry.key)
                    if change.entry.key == "new4":
                        break
        except cenote.ExpiredError:
            return
        missed = {f"new{number}" for number in range(5)} - set(told)
        demand(False, f"rule 25: a position that SQL lost was followed: {told}, missed {missed}")


@pytest.mark.judge
@toothed(the_memory_of_the_stream)
async def test_an_epoch_that_the_restored_database_does_not_know_is_given_back(arena: Arena) -> None:
    """SQL goes back to before the epoch changed: the stream's metadata is newer, and flushing goes on."""
    settings = arena.settings()
    async with cenote.open(**settings) as store:
        agent = store.agent("epoch")
        await agent.put("k", 1, durability="sql")
        await arena.image_sql()
        core = store._core
        newest = (await core.table.epochs())[-1]
        await rewind.begin(core, rewind.Rewound(newest.epoch, core.last_sequence + 1, None))
        await reached(lambda: core.epochs.newest == newest.epoch + 1, "the next epoch")
        receipt = await agent.put("k", 2, durability="sql")
        assert receipt.version.epoch == newest.epoch + 1
        await arena.put_back_sql()
        await agent.put("k", 3)
        await store.flush(20)
        row = await core.table.read(agent.id, "k")
        assert row is not None
        demand(row.value == "3" and row.epoch == newest.epoch + 1, f"I3: {row}")
        rows = await core.table.epochs()
        assert [one.epoch for one in rows] == [newest.epoch, newest.epoch + 1]
        assert rows[-1].from_us == core.epochs.starts_us[-1]


# --- campaigns ----------------------------------------------------------------------------------------------


@pytest.mark.judge
@pytest.mark.parametrize("number", range(ROUNDS))
async def test_c_sql_goes_back_under_load(number: int, arena: Arena, tmp_path: Path) -> None:
    dice = random.Random(f"c{SEED + number}")
    print(await rewinds.round_of(arena, tmp_path / "journal", rewinds.sql_goes_back, dice))


@pytest.mark.judge
@toothed(the_mark_of_the_database, tries=6)
async def test_c_sees_what_is_lost_without_the_rule(arena: Arena, tmp_path: Path) -> None:
    dice = random.Random("c")
    await rewinds.round_of(arena, tmp_path / f"journal{dice.random()}", rewinds.sql_goes_back, dice)


@pytest.mark.judge
@pytest.mark.parametrize("number", range(ROUNDS))
async def test_d_both_go_back_under_load(number: int, arena: Arena, tmp_path: Path) -> None:
    dice = random.Random(f"d{SEED + number}")
    print(await rewinds.round_of(arena, tmp_path / "journal", rewinds.both_go_back, dice))
