"""What comes back from SQL, and what must not: S04, S06, S19, S24, and I2, I10. Each test runs again without its
rule."""

from collections.abc import Sequence
from typing import Any

import pytest

import cenote
from cenote.engine import batch, entries, hand
from cenote.engine.epoch import Epochs
from cenote.kv.stream import StateStream
from cenote.testing import TestServers
from witness import another, at, demand, eventually, evict_all, in_kv, reached, tables, toothed

QUICK = {"flush__drain_ms": 0}


# --- the rules, taken out -----------------------------------------------------------------------------------


def the_compare_and_set(patch: pytest.MonkeyPatch) -> None:
    """Hydration puts, whatever is there."""
    plain = StateStream.publish_nowait
    patch.setattr(StateStream, "publish_nowait", lambda *args: plain(*args[:5]))


def the_age_of_belief(patch: pytest.MonkeyPatch) -> None:
    """A clean copy is believed however long its hydration took (F-t0)."""
    patch.setattr(entries, "believed", lambda stored, message: True)


def the_tombstone_in_kv(patch: pytest.MonkeyPatch) -> None:
    """A deleted key counts as absent in KV: SQL is asked."""
    patch.setattr(entries, "believed", lambda stored, message: not stored.deleted)


def the_tombstone_in_sql(patch: pytest.MonkeyPatch) -> None:
    """A delete has no value to flush, so it is not flushed."""
    plain = hand.build

    def build(deliveries: Sequence[batch.Delivery], *rest: Any) -> batch.Batch:
        built = plain(deliveries, *rest)
        return built._replace(rows=[row for row in built.rows if not row.deleted])

    patch.setattr(hand, "build", build)


def the_epoch(patch: pytest.MonkeyPatch) -> None:
    """A version is a bare sequence."""
    patch.setattr(Epochs, "at", lambda self, time_us: 1)


# --- the tests ----------------------------------------------------------------------------------------------


@toothed(the_compare_and_set)
async def test_s04_a_read_that_hydrates_never_covers_a_newer_write(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as reader:
        agent = store.agent("s04")
        await agent.put("k", "old")
        assert await evict_all(store) >= 1
        with at(hydrate_read=lambda: agent.put("k", "new")) as crossed:
            assert await reader.agent("s04").get("k") in ("old", "new")
        assert crossed["hydrate.read"] == 1, "nothing was hydrated"
        async with another(store) as third, tables(cenote_servers, store) as sql:
            demand(await third.agent("s04").get("k") == "new", "I10: a hydrated copy covers a newer write")
            await store.flush(5)
            demand(await sql.value(agent, "k") == '"new"', "I10: SQL never saw the newer write")

        async def coherent() -> bool:
            return bool(await reader.agent("s04").get("k") == "new")

        await eventually(coherent, "I4: the reader's L1 keeps the older value")


@toothed(the_compare_and_set)
async def test_s04_hydrating_an_agent_never_covers_writes_or_deletes(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as other:
        agent = store.agent("s04")
        for number in range(20):
            await agent.put(f"k{number}", "old")
        assert await evict_all(store) >= 20

        async def act() -> None:
            await agent.put("k3", "new")
            await agent.delete("k4")

        with at(hold=True, hydrate_read=act):
            brought = await other.agent("s04").hydrate()
        assert brought.keys >= 18
        async with another(store) as third:
            items = dict([item async for item in third.agent("s04").items()])
            demand(items["k3"] == "new", "I10: a hydrated copy covers a newer write")
            demand("k4" not in items, "I2: hydration brought a deleted key back")
            demand(await third.agent("s04").get("k4") is None, "I2: hydration brought a deleted key back")
        assert len(items) == 19


@toothed(the_age_of_belief)
async def test_s19_a_write_that_came_and_went_during_a_slow_hydration(cenote_servers: TestServers) -> None:
    """put, flush and eviction while a hydrator holds the row before: KV is empty again, its create-only publish
    succeeds, and nobody may believe what it published."""
    async with cenote.open(**cenote_servers.fresh(**QUICK, state__ttl_s=2)) as store, another(store) as slow:
        agent = store.agent("s19")
        await agent.put("k", "old")
        assert await evict_all(store) >= 1

        async def come_and_go() -> None:
            await agent.put("k", "new")
            await agent.put("the last entry is never evicted", 1)
            await reached(lambda: gone(agent, "k"), "the eviction of the new value")

        with at(hydrate_read=come_and_go):
            await slow.agent("s19").get("k")
        message = await in_kv(agent, "k")
        assert message is not None, "the stale copy was not published: there is nothing to disbelieve"
        assert message.payload == b'"old"', "the stale copy was not published: there is nothing to disbelieve"
        async with another(store) as third:
            demand(await third.agent("s19").get("k") == "new", "I10: a stale copy hides a flushed and evicted write")
            assert (await third.agent("s19").entry("k")).version > cenote.Version(0, 0)
            await third.agent("s19").update("k", lambda value: value + "er")
            demand(await third.agent("s19").get("k") == "newer", "I10: an update was built on a stale copy")


@toothed(the_tombstone_in_kv, the_tombstone_in_sql)
async def test_s06_a_deleted_key_stays_deleted_in_every_tier(cenote_servers: TestServers) -> None:
    settings = cenote_servers.fresh(**QUICK)
    async with cenote.open(**settings) as store:
        agent = store.agent("s06")
        await agent.put("k", "value")
        assert await evict_all(store) >= 1, "the value is not in SQL alone"
    async with cenote.open(**settings, flush__enabled=False) as store, another(store) as fresh:
        await store.agent("s06").delete("k")  # the tombstone is in KV, the value in SQL
        demand(await store.agent("s06").get("k") is None, "I2: the deleter still reads the value")
        demand(await fresh.agent("s06").get("k") is None, "I2: the tombstone in KV does not hide SQL's row")
        demand([key async for key in fresh.agent("s06").keys("")] == [], "I2: a deleted key is listed")
    async with cenote.open(**settings) as store, another(store) as fresh:
        agent = fresh.agent("s06")
        assert await evict_all(store) >= 1, "the tombstone is not in SQL alone"
        demand(await agent.get("k") is None, "I2: the deleted value came back from SQL")
        demand((await agent.hydrate()).keys == 0, "I2: hydration brought a deleted key back")
        demand([key async for key in agent.keys("")] == [], "I2: a deleted key is listed")
        await agent.put("k", "again")
        demand(await agent.get("k") == "again", "I1: a key cannot be written after its delete")


@toothed(the_epoch)
async def test_s24_a_recreated_bucket_begins_an_epoch(cenote_servers: TestServers) -> None:
    """Its sequences begin at 1 again: without an epoch the fence would refuse every new write, and lose it."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, tables(cenote_servers, store) as sql:
        await sql.audit()
        agent = store.agent("s24")
        for number in range(20):
            receipt = await agent.put("k", number)
        await agent.put("other", "only in the first life", durability="sql")
        await store.flush(5)
        await store._core.link.api(f"STREAM.DELETE.{store._core.stream.name}")
        receipt = await agent.put("k", "new")
        assert receipt.version.revision < 20, "the bucket was not recreated"
        async with another(store) as fresh:
            demand(await fresh.agent("s24").get("k") == "new", "I1: the write after the loss cannot be read")
            demand(
                await fresh.agent("s24").get("other") == "only in the first life", "I1: what SQL had is lost with KV"
            )

        async def in_sql() -> bool:
            return await sql.value(agent, "k") == '"new"'

        await eventually(in_sql, "I3, I1: the fence refuses every write of the new life")
        row = await sql.row(agent, "k")
        assert row is not None
        demand(row["epoch"] == 2, "I3: the new life has the old epoch")
        assert (await store.stats()).epoch == 2
        with pytest.raises(cenote.ConflictError):
            await agent.put("k", "?", if_version=cenote.Version(1, row["version"]))
        assert await sql.demand_monotonic() >= 3


async def test_s24_readers_follow_a_recreated_bucket(cenote_servers: TestServers) -> None:
    """A process that neither writes nor flushes drops what it had in memory."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as reader:
        for number in range(20):
            await store.agent("s24").put("k", number)
        assert await reader.agent("s24").get("k") == 19
        await store.flush(5)
        await store._core.link.api(f"STREAM.DELETE.{store._core.stream.name}")
        await store.agent("s24").put("k", "new")

        async def follows() -> bool:
            return bool(await reader.agent("s24").get("k") == "new")

        await eventually(follows, "I4: a reader stays in the stream's former life")
        assert (await reader.agent("s24").entry("k")).version.epoch == 2


async def gone(agent: Any, key: str) -> bool:
    """KV does not hold the key."""
    return await in_kv(agent, key) is None
