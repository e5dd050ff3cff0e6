"""What leaves SQL, and what must not come back: flow rules 12 (with F-gc), 20 and 21; I1, I2, I15."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

import cenote
from cenote import limits
from cenote.agent import AgentState
from cenote.engine import fence
from cenote.engine.batch import Batch
from cenote.engine.collector import Collector
from cenote.engine.hand import Hand
from cenote.sql import pool
from cenote.sql.loader import Queries
from cenote.sql.rows import Heartbeat, Row
from cenote.store import Store
from cenote.testing import TestServers
from witness import Tables, at, demand, eventually, evict_all, reached, tables, toothed

SQL_OF_A_KEY = "agent_id = $1 AND key = 'k'"


# --- the rules, taken out -----------------------------------------------------------------------------------


def _replaced(patch: pytest.MonkeyPatch, text: str, by: str) -> None:
    plain = Queries.__getitem__
    patch.setattr(Queries, "__getitem__", lambda self, name: plain(self, name).replace(text, by))


def the_floor(patch: pytest.MonkeyPatch) -> None:
    """A flush inserts whatever it holds."""
    _replaced(patch, "(coalesce(e, $1), r) > (SELECT gc_epoch, gc_version FROM guard)", "true")


def the_lock(patch: pytest.MonkeyPatch) -> None:
    """A flush reads the floor as its snapshot has it."""
    _replaced(patch, "incarnation = $2 FOR SHARE", "incarnation = $2")


def the_look(patch: pytest.MonkeyPatch) -> None:
    """What the floor refuses is given up."""

    async def gone(*_: Any) -> bool:
        return False

    plain = fence._gone
    patch.setattr(fence, "_gone", lambda table, rows, _look: plain(table, rows, gone))


def the_round(patch: pytest.MonkeyPatch) -> None:
    """Once looked for, always inserted."""
    _replaced(patch, "$19 = (SELECT gc_round FROM guard)", "$19::bigint IS NOT NULL")


def the_version_seen(patch: pytest.MonkeyPatch) -> None:
    """A row that had expired is swept, whatever it is by now."""
    _replaced(patch, "(s.epoch, s.version) = (u.e, u.r) AND NOT s.deleted", "true")


def the_day(patch: pytest.MonkeyPatch) -> None:
    """A blob goes as soon as nothing refers to it."""
    patch.setattr(limits, "BLOB_UNREFERENCED_S", 0)


def the_bound(patch: pytest.MonkeyPatch) -> None:
    """Pages are bounded by rows alone."""
    _replaced(patch, "place = 1 OR bytes <= $8", "place = 1 OR $8::bigint IS NOT NULL")


# --- what the tests do --------------------------------------------------------------------------------------


def hand_of(store: Store) -> Hand:
    """What the store's own flusher has in hand."""
    flusher = store._machines.flusher
    assert flusher is not None
    assert flusher.shift is not None
    assert flusher.shift.hand is not None
    return flusher.shift.hand


async def sweep(store: Store, sql: Tables, *, old: bool = True) -> None:
    """What the active flusher does every few minutes; as if all tombstones were two days old."""
    if old:
        await sql.link.execute(f"UPDATE {sql.schema}.state SET updated_at = now() - interval '2 days' WHERE deleted")
    hand = hand_of(store)
    await Collector(store._core, hand.tenure.durable, hand.tenure.guard, hand.overlap, 2).sweep()


async def in_hand(store: Store, agent: AgentState) -> Row:
    """The key's newest row, as a flusher holds it that has not committed it yet."""
    row = await store._core.table.read(agent.id, "k")
    assert row is not None
    return row


async def thaw(store: Store, row: Row) -> list[Row]:
    """A flusher that slept with this row in hand goes on."""
    batch = Batch([row], [], [], [], [], {store.agent("a")._agent})
    return await hand_of(store)._commit(batch, [row], [], (row.version, row.kv_time_us))


async def delete_and_collect(store: Store, agent: AgentState, sql: Tables) -> None:
    """The key is deleted, flushed, evicted, and its tombstone leaves SQL."""
    before = store._core.counts.collected
    await (await agent.delete("k")).durable(20)
    await evict_all(store)
    await sweep(store, sql)
    assert store._core.counts.collected == before + 1
    assert await sql.row(agent, "k") is None


Opened = tuple[Store, AgentState, Tables]


async def opened(
    servers: TestServers, test: Callable[[Store, AgentState, Tables], Awaitable[None]], **more: Any
) -> None:
    """A store of its own with its agent and its tables."""
    async with cenote.open(**servers.fresh(**more)) as store, tables(servers, store) as sql:
        agent = store.agent("a")
        await (await agent.put("first", 1)).durable(20)
        await test(store, agent, sql)


# --- rule 12 ------------------------------------------------------------------------------------------------


@toothed(the_floor)
async def test_a_flusher_that_slept_over_a_collection_resurrects_nothing(cenote_servers: TestServers) -> None:
    async def story(store: Store, agent: AgentState, sql: Tables) -> None:
        await (await agent.put("k", "old")).durable(20)
        row = await in_hand(store, agent)
        await delete_and_collect(store, agent, sql)
        overtaken = await thaw(store, row)
        demand(await sql.row(agent, "k") is None, "I2: a deleted key came back")
        assert overtaken == [row]
        assert await agent.get("k", "absent") == "absent"
        await (await agent.put("k", "new")).durable(20)
        assert await sql.value(agent, "k") == '"new"'

    await opened(cenote_servers, story)


@toothed(the_lock)
async def test_a_flush_that_waits_for_a_collection_knows_its_floor(cenote_servers: TestServers) -> None:
    """The flush begins, and has its snapshot, before the collection commits. Here it may wait for long."""

    async def story(store: Store, agent: AgentState, sql: Tables) -> None:
        await (await agent.put("k", "old")).durable(20)
        row = await in_hand(store, agent)
        deleted = await agent.delete("k")
        await deleted.durable(20)
        tombstone = await in_hand(store, agent)
        hand = hand_of(store)
        place = (tombstone.epoch, tombstone.version)
        columns = ([agent.id], ["k"], [tombstone.epoch], [tombstone.version])
        async with sql.link.transaction():
            collect = store._core.db.queries["collect"]
            assert await sql.link.fetchval(collect, *hand.tenure.guard, *place, *columns) == 1
            beat = Heartbeat("sleeper", store._core.epochs.store_id, row.version, row.kv_time_us)
            flush = asyncio.create_task(store._core.table.flush([row], hand.tenure.guard, beat))
            waits = (
                "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND transactionid = pg_current_xact_id()::xid)"
            )
            await reached(lambda: sql.link.fetchval(waits), "the flush waits for the collection")
        outcome = await flush
        demand(await sql.row(agent, "k") is None, "I2: a deleted key came back")
        assert outcome is not None
        assert outcome.floor[:2] == place

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pool.SERVER_SETTINGS, "lock_timeout", "20s")
        await opened(cenote_servers, story)


@toothed(the_look)
async def test_a_live_entry_below_the_floor_reaches_sql_all_the_same(cenote_servers: TestServers) -> None:
    async def story(store: Store, agent: AgentState, sql: Tables) -> None:
        await sql.link.execute(f"UPDATE {sql.schema}.epochs SET gc_epoch = epoch, gc_version = 1000000, gc_round = 1")
        receipts = [await agent.put(f"k{number}", number) for number in range(20)]
        receipts.append(await agent.put("first", 2))  # SQL has a row of it, which the fence may update

        async def there() -> bool:
            rows = [await sql.value(agent, receipt.key) for receipt in receipts]
            return None not in rows and rows[-1] == "2"

        await eventually(there, "I1: an acked write below the floor never reached SQL")

    await opened(cenote_servers, story)


@toothed(the_round)
async def test_a_collection_between_the_look_and_the_insert_is_noticed(cenote_servers: TestServers) -> None:
    """The floor itself does not move: what is collected in between is older than what was collected before."""

    async def story(store: Store, agent: AgentState, sql: Tables) -> None:
        await sql.link.execute(f"UPDATE {sql.schema}.epochs SET gc_epoch = epoch, gc_version = 1000000, gc_round = 1")
        await (await agent.put("k", "old")).durable(20)
        row = await in_hand(store, agent)
        await sql.link.execute(f"DELETE FROM {sql.schema}.state WHERE {SQL_OF_A_KEY}", agent.id)
        plain, looks = fence._gone, []

        async def gone(table: Any, rows: list[Row], look: fence.Look) -> list[Row]:
            found = await plain(table, rows, look)
            if rows == [row]:
                looks.append(found)
                if len(looks) == 1:
                    await delete_and_collect(store, agent, sql)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fence, "_gone", gone)
            await thaw(store, row)
        demand(await sql.row(agent, "k") is None, "I2: a deleted key came back")
        assert looks == [[], [row]]

    await opened(cenote_servers, story)


async def test_what_is_collected_and_what_is_not(cenote_servers: TestServers) -> None:
    async def story(store: Store, agent: AgentState, sql: Tables) -> None:
        for key in ("young", "held", "letter", "rewritten", "gone"):
            await agent.put(key, 1)
            await agent.delete(key)
        await evict_all(store)
        await agent.put("rewritten", 2)
        await agent.delete("held")  # KV holds a tombstone
        await store.flush(20)
        schema = sql.schema
        await sql.link.execute(
            f"INSERT INTO {schema}.dead_letters (agent_id, key, epoch, version, kv_time, reason, raw, envelope)"
            f" SELECT agent_id, key, epoch, version, kv_time, 'test', '', '' FROM {schema}.state WHERE key = 'letter'"
        )
        await sweep(store, sql, old=False)
        assert store._core.counts.collected == 0, "none is a day old"
        await sql.link.execute(
            f"UPDATE {schema}.state SET updated_at = now() - interval '2 days' WHERE deleted AND key <> 'young'"
        )
        await sweep(store, sql, old=False)
        left = await sql.link.fetch(f"SELECT key FROM {schema}.state ORDER BY key")
        assert [row["key"] for row in left] == ["first", "held", "letter", "rewritten", "young"]
        assert store._core.counts.collected == 1

    await opened(cenote_servers, story)


async def test_the_flusher_sweeps_by_itself(cenote_servers: TestServers) -> None:
    async with (
        cenote.open(**cenote_servers.fresh(state__tombstone_s=0.1)) as store,
        tables(cenote_servers, store) as sql,
    ):
        agent = store.agent("a")
        await agent.put("k", 1)
        await (await agent.delete("k")).durable(20)
        await evict_all(store)

        async def collected() -> bool:
            return await sql.row(agent, "k") is None and (await store.stats()).collected == 1

        await reached(collected, "the tombstone leaves SQL and is counted")


async def test_a_new_epoch_begins_with_the_floor_of_the_one_before(cenote_servers: TestServers) -> None:
    async def story(store: Store, agent: AgentState, sql: Tables) -> None:
        schema = sql.schema
        await sql.link.execute(f"UPDATE {schema}.epochs SET gc_epoch = 1, gc_version = 77, gc_round = 5")
        async with sql.link.transaction():
            await sql.link.execute(
                f"INSERT INTO {schema}.epochs (epoch, from_time, store_id, stream_created, sql_identity, reason)"
                f" SELECT 2, now(), store_id, 'x', '', 'test' FROM {schema}.epochs"
            )
            row = await sql.link.fetchrow(f"SELECT gc_epoch, gc_version, gc_round FROM {schema}.epochs WHERE epoch = 2")
            assert tuple(row) == (1, 77, 5)
            await sql.link.execute(f"DELETE FROM {schema}.epochs WHERE epoch = 2")

    await opened(cenote_servers, story)


async def test_heartbeats_of_flushers_long_gone_leave_but_the_highest(cenote_servers: TestServers) -> None:
    async def story(store: Store, agent: AgentState, sql: Tables) -> None:
        for name, high, minute, days in (
            ("a", 5, 5, 9),
            ("b", 900, 1, 9),
            ("c", 7, 9, 9),
            ("d", 6, 5, 0),
            ("e", 2, 2, 9),
        ):
            await sql.link.execute(
                f"INSERT INTO {sql.schema}.flushers SELECT $1, store_id, 9, $2, 'epoch'::timestamptz"
                f" + $3 * interval '1 minute', now() - $4 * interval '1 day', 1, 1, 0 FROM {sql.schema}.epochs LIMIT 1",
                name, high, minute, days,
            )  # fmt: skip
        await store._core.table.forget_flushers(86_400)
        left = await sql.link.fetch(f"SELECT flusher_id FROM {sql.schema}.flushers WHERE epoch = 9 ORDER BY 1")
        assert [row[0] for row in left] == ["b", "c", "d"], "the highest sequence, the newest time, and who lives"

    await opened(cenote_servers, story)


# --- rule 21 ------------------------------------------------------------------------------------------------


@toothed(the_version_seen)
async def test_an_expired_row_is_swept_and_a_new_write_is_not(cenote_servers: TestServers) -> None:
    async def story(store: Store, agent: AgentState, sql: Tables) -> None:
        core = store._core
        first = await agent.put("k", "old", ttl=timedelta(milliseconds=30))
        await first.durable(20)

        async def over() -> bool:
            return bool(await core.table.expired(core.now_ms() * 1000, 10))

        await reached(over, "the row expires")
        seen = await core.table.expired(core.now_ms() * 1000, 10)
        await (await agent.put("k", "new")).durable(20)
        await core.table.expire(seen)
        demand(await sql.value(agent, "k") == '"new"', "I1: an acked write was swept away")

    await opened(cenote_servers, story)


async def test_an_expired_row_becomes_a_tombstone_of_its_version(cenote_servers: TestServers) -> None:
    async def story(store: Store, agent: AgentState, sql: Tables) -> None:
        mark = await agent.put("mark", 1)
        first = await agent.put("k", "old", ttl=timedelta(milliseconds=30))
        await first.durable(20)
        await evict_all(store)
        await asyncio.sleep(0.03)  # its life
        await sweep(store, sql, old=False)
        row = await sql.row(agent, "k")
        assert row is not None
        assert (row["deleted"], row["value"], row["version"]) == (True, None, first.version.revision)
        assert store._core.counts.expired == 1
        assert await agent.get("k") is None
        async for entry in agent.watch(since=mark.version):
            assert (entry.key, entry.change, entry.version) == ("k", "expiry", first.version)
            break
        again = await agent.put("k", "new", if_version=0)
        await again.durable(20)
        assert await sql.value(agent, "k") == '"new"'

    await opened(cenote_servers, story)


# --- rule 20: blobs -----------------------------------------------------------------------------------------


async def blobs(sql: Tables) -> tuple[int, int]:
    """Number and bytes of the blobs."""
    row = await sql.link.fetchrow(f"SELECT count(*), coalesce(sum(length(bytes)), 0) FROM {sql.schema}.blobs")
    return row[0], int(row[1])


@toothed(the_day)
async def test_a_blob_whose_entry_is_still_to_be_published_stays(cenote_servers: TestServers) -> None:
    async def story(store: Store, agent: AgentState, sql: Tables) -> None:
        value = os.urandom(600_000)

        async def two_sweeps() -> None:
            assert (await blobs(sql))[0] == 1
            await sweep(store, sql)
            await sweep(store, sql)

        with at(write_ready=two_sweeps) as crossings:
            await agent.put("k", value)
        assert crossings["write.ready"] == 1
        try:
            assert await agent.get("k") == value
        except cenote.ConsistencyError as error:
            demand(False, f"I1: {error}")

    await opened(cenote_servers, story)


async def test_large_values_that_are_over_leave_sql(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overwritten, deleted, expired, never published; what is referred to stays, in KV or in SQL alone."""
    monkeypatch.setattr(limits, "BLOB_UNREFERENCED_S", 0)

    async def story(store: Store, agent: AgentState, sql: Tables) -> None:
        value = os.urandom(600_000)
        for key in ("overwritten", "deleted", "kept", "replaced"):
            await agent.put(key, value)
        await agent.put("expired", value, ttl=timedelta(milliseconds=1))
        with at(write_ready=_refused), pytest.raises(RuntimeError):
            await agent.put("orphan", value)
        await store.flush(20)
        number, before = await blobs(sql)
        assert number == 6
        size = await sql.link.fetchval(f"SELECT pg_total_relation_size('{sql.schema}.blobs')")
        assert before <= size
        await sweep(store, sql)
        await agent.put("overwritten", 1)
        await agent.put("replaced", value[::-1])
        await agent.delete("deleted")
        await store.flush(20)
        for _ in range(2):
            await sweep(store, sql)
        number, after = await blobs(sql)
        assert number == 3, "KV still holds the expired entry"
        assert after < before * 0.6
        await evict_all(store)
        for _ in range(2):
            await sweep(store, sql)
        assert (await blobs(sql))[0] == 2
        assert await agent.get("kept") == value
        assert await agent.get("replaced") == value[::-1]
        assert store._core.counts.blobs_collected == 5

    await opened(cenote_servers, story)


async def _refused() -> None:
    raise RuntimeError("the writer ends here")


async def test_a_flusher_that_slept_over_its_blob_leaves_no_dangling_reference(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BLOB_UNREFERENCED_S", 0)

    async def story(store: Store, agent: AgentState, sql: Tables) -> None:
        await (await agent.put("k", os.urandom(600_000))).durable(20)
        row = await in_hand(store, agent)
        await delete_and_collect(store, agent, sql)
        await sweep(store, sql)
        assert await blobs(sql) == (0, 0)
        await thaw(store, row)
        demand(await sql.row(agent, "k") is None, "I1: SQL refers to a blob that it does not hold")
        await (await agent.put("k", 1)).durable(20)
        await thaw(store, row)
        assert await sql.value(agent, "k") == "1"

    await opened(cenote_servers, story)


async def test_a_large_value_is_written_once_and_only_when_the_condition_holds(cenote_servers: TestServers) -> None:
    async def story(store: Store, agent: AgentState, sql: Tables) -> None:
        value = os.urandom(600_000)
        await agent.put("k", 0)
        with pytest.raises(cenote.ConflictError):
            await agent.put("k", value, if_version=0)
        assert await blobs(sql) == (0, 0)
        rounds = 0

        def change(_: Any) -> bytes:
            nonlocal rounds
            rounds += 1
            return value if rounds < 3 else value + b"!"

        async def overtake() -> None:
            await store._machines.writer.write(agent._target("k"), cenote.engine.writer.Content("j", b"1"))

        plain = store._machines.writer.replace

        async def replace(*given: Any) -> Any:
            if rounds < 4:
                await overtake()
            return await plain(*given)

        store._machines.writer.replace = replace  # type: ignore[method-assign]  # another writer is always faster
        await agent.update("k", change)
        assert rounds == 4
        assert (await blobs(sql))[0] == 1
        assert await agent.get("k") == value + b"!"

    await opened(cenote_servers, story)


# --- large values through the tiers -------------------------------------------------------------------------


async def there_and_back(servers: TestServers, sizes: list[int]) -> None:
    """Sizes of the encoded value, which its two quotes belong to."""
    texts = {f"k{size}": os.urandom(size // 2).hex()[: size - 2].ljust(size - 2, "x") for size in sizes}

    async def story(store: Store, agent: AgentState, sql: Tables) -> None:
        for key, text in texts.items():
            await agent.put(key, text)
            assert await agent.get(key) == text
        await evict_all(store)
        store._core.cache.clear()
        for key, text in texts.items():
            assert await agent.get(key) == text
        assert (await store.stats()).hits["sql"] == len(sizes)
        await evict_all(store)
        assert (await agent.hydrate()).keys == len(sizes) + 1
        store._core.cache.clear()
        for key, text in texts.items():
            assert await agent.get(key) == text
        assert (await store.stats()).hits["sql"] == len(sizes)

    await opened(servers, story)


async def test_large_values_come_back_from_every_tier(cenote_servers: TestServers) -> None:
    around = [size + by for size in (2**19, 2**20) for by in (-1, 0, 1)]
    await there_and_back(cenote_servers, [*around, 2**23])


@pytest.mark.judge
async def test_the_largest_value_comes_back_from_every_tier(cenote_servers: TestServers) -> None:
    await there_and_back(cenote_servers, [2**26])


async def test_a_value_that_is_too_large_is_refused_before_anything_is_written(cenote_servers: TestServers) -> None:
    async def story(store: Store, agent: AgentState, sql: Tables) -> None:
        with pytest.raises(cenote.RejectedError, match=r"67108864|64"):
            await agent.put("k", "x" * (2**26 - 1))
        assert await blobs(sql) == (0, 0)
        assert await agent.get("k", "absent") == "absent"

    await opened(cenote_servers, story)


# --- I15: pages ---------------------------------------------------------------------------------------------


@pytest.mark.judge
@toothed(the_bound)
async def test_a_page_of_large_rows_is_bounded_by_bytes(cenote_servers: TestServers) -> None:
    async def story(store: Store, agent: AgentState, sql: Tables) -> None:
        value = os.urandom(60_000)
        wanted = {f"k{number:02}": value[number:] for number in range(60)} | {"same": "x" * 3_000_000}
        await agent.put_many(wanted)
        await evict_all(store)
        plain, sizes = store._core.table.page, []

        async def page(*given: Any, **more: Any) -> list[Row]:
            rows = await plain(*given, **more)
            sizes.append((len(rows), sum(len(row.value or "") + len(row.raw or b"") for row in rows)))
            return rows

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(limits, "PAGE_BYTES_MAX", 2**20)
            patch.setattr(store._core.table, "page", page)
            assert {key: each async for key, each in agent.items()} == wanted | {"first": 1}
            assert (await agent.hydrate()).keys == 62
        demand(all(size <= 2**20 or number == 1 for number, size in sizes), f"I15: pages of {max(sizes)}")
        assert sum(number for number, _ in sizes) == 2 * 62

    await opened(cenote_servers, story)
