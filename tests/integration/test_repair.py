"""Repair: differences of each kind, planted past cenote, are found, mended, and none is invented."""

import asyncio
import os
from collections.abc import Sequence
from datetime import timedelta

import pytest
from cli_run import Cli
from damage import held, planted, row_changed, row_lost

import cenote
from cenote import limits
from cenote.agent import AgentState
from cenote.engine.differences import Difference, Item
from cenote.store import Store
from cenote.testing import TestServers
from witness import another, demand, tables


async def test_each_kind_is_found_and_mended_and_nothing_else(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        sound, agent = store.agent("sound"), store.agent("damaged")
        values = {
            "text": "x",
            "bytes": b"\x00\xff",
            "big": os.urandom(600_000),
            "set": cenote.ORSet(["a"]),
            "a\x00": 1.5,
        }
        await sound.put_many(values)
        await sound.put("brief", 1, ttl=timedelta(milliseconds=50))
        await sound.delete("text")
        found, expected = await planted(store, sql, agent, 3)
        looked = await store.repair(dry_run=True)
        assert (looked.found, looked.mended) == (found, {})
        async with another(store) as other:
            done = await other.repair()
            assert (done.found, done.mended, done.left) == (found, found, {})
            demand(await held(other.agent("damaged")) == expected, "I1: what was mended is not what was written")
            again = await other.repair()
            assert (again.found, again.left) == ({}, {})
            assert [one.found for one in await other.repairs()] == [{}, found, found]
        await evicted(store, agent)
        async with another(store) as third:
            demand(await held(third.agent("damaged")) == expected, "I3: PostgreSQL is not what was written")


async def evicted(store: Store, agent: AgentState) -> None:
    """KV holds nothing of the agent."""
    core = store._core
    await store.flush(20)
    await core.link.api(f"STREAM.PURGE.{core.stream.name}", {"filter": core.agent_filter(agent._agent)})


async def test_what_is_on_its_way_is_no_difference(cenote_servers: TestServers) -> None:
    settings = cenote_servers.fresh()
    async with cenote.open(**settings) as store:
        agent, stop = store.agent("busy"), asyncio.Event()

        async def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                await agent.put(f"k{number % 50}", number)
                if number % 7 == 0:
                    await agent.delete(f"k{number % 11}")

        writing = asyncio.create_task(write())
        try:
            for _ in range(8):
                assert (await store.repair()).found == {}
        finally:
            stop.set()
            await writing


async def test_a_large_value_that_is_gone_is_told_of(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        agent = store.agent("a")
        for name in ("one", "two", "three"):
            await agent.put(name, os.urandom(600_000))
        await store.flush(20)
        core = store._core
        await core.link.api(f"STREAM.PURGE.{core.stream.name}", {"filter": core.target(agent._agent, "two").subject})
        await sql.link.execute(f"DELETE FROM {sql.schema}.blobs WHERE key <> 'three'")
        done = await store.repair()
        assert (done.found, done.left) == ({"blob_missing": 2}, {"blob_missing": 2})
        assert {(one.agent, one.key, one.mended) for one in done.findings} == {("a", "one", False), ("a", "two", False)}


async def test_some_agents_only(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        agents = [store.agent(name) for name in ("one", "two")]
        for agent in agents:
            await agent.put("k", "v")
        await store.flush(20)
        for agent in agents:
            await row_lost(store, sql, agent, ["k"])
        done = await store.repair(agents=["one"])
        assert (done.found, done.scanned) == ({"sql_missing": 1}, 1)
        assert (await store.repair()).found == {"sql_missing": 1}


async def test_what_is_mended_in_sql_is_in_the_change_feed(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        agent = store.agent("a")
        await agent.put_many({"lost": 1, "other": 2})
        await store.flush(20)
        await row_lost(store, sql, agent, ["lost"])
        await row_changed(store, sql, agent, ["other"])
        changes = store.changes(0)
        async with asyncio.timeout(20):
            last = [await anext(changes) for _ in range(2)][-1]
        await store.repair()
        changes = store.changes(last.position)
        async with asyncio.timeout(20):
            assert {(await anext(changes)).entry.key for _ in range(2)} == {"lost", "other"}


async def test_a_page_that_is_looked_at_again_counts_once(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer is lost after the first of its portions, in a dry run and in one that mends."""
    monkeypatch.setattr(limits, "FLUSH_BYTES_MAX", 1)
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        agent = store.agent("a")
        await agent.put_many({f"k{number}": number for number in range(4)})
        await store.flush(20)
        await row_lost(store, sql, agent, ["k0", "k2"])
        comparison = store._machines.repair._comparison
        differences = comparison.differences
        for dry_run in (True, False):
            calls = 0

            async def lost_once(items: Sequence[Item]) -> list[Difference]:
                nonlocal calls
                calls += 1
                if calls == 3:
                    raise cenote.UnavailableError("the answer was lost")
                return await differences(items)

            monkeypatch.setattr(comparison, "differences", lost_once)
            done = await store.repair(dry_run)
            assert calls > 4
            assert done.found == {"sql_missing": 2}
            assert done.mended == ({} if dry_run else {"sql_missing": 2})
            assert [one.mended for one in done.findings] == [not dry_run] * 2


async def test_a_slow_run_is_nobody_elses(cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes more slowly than a page in the time after which a run counts as left; one that is left is gone on with,
    and who comes back to it is told."""
    monkeypatch.setattr(limits, "REPAIR_SILENT_S", 0.4)
    monkeypatch.setattr(limits, "REPAIR_PAGE_KEYS", 5)
    async with cenote.open(**cenote_servers.fresh()) as store:
        await store.agent("a").put_many({f"k{number}": number for number in range(10)})
        await store.flush(20)
        slow = asyncio.create_task(store.repair(entries_per_s=5))
        await asyncio.sleep(1.2)
        assert (await store.repair()).scanned == 10
        assert (await slow).scanned == 10
        assert len(await store.repairs()) == 2
        monkeypatch.setattr(limits, "REPAIR_SILENT_S", 1_000)
        left = asyncio.create_task(store.repair(entries_per_s=5))
        await asyncio.sleep(0.3)
        monkeypatch.setattr(limits, "REPAIR_SILENT_S", 0.05)
        assert (await store.repair()).scanned == 10
        with pytest.raises(cenote.LifecycleError):
            await left
        assert len(await store.repairs()) == 3


async def test_keys_that_postgresql_cannot_write_as_text(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        names = ["a\x00b", "\ud800", "é\x1a"]
        agent = store.agent("x\x00\udfff")
        await agent.put_many(dict.fromkeys(names, 1))
        await store.flush(20)
        await store._core.db.execute(f"DELETE FROM {store.config.names.schema('agents')}.state")
        done = await store.repair(agents=[agent.name])
        assert (done.found, done.left) == ({"sql_missing": 3}, {})
        (kept,) = await store.repairs()
        assert {(one.agent, one.key) for one in kept.findings} == {(agent.name, name) for name in names}


async def test_who_was_late_is_compared(cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REPAIR_LATE_EVERY_S", 0.1)
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        await store.agent("early").put("k", 1)
        await store.flush(20)
        async with sql.link.transaction():
            await sql.link.execute(f"LOCK TABLE {sql.schema}.state IN EXCLUSIVE MODE")
            await store.agent("tardy\x00").put("k", 1)
            await asyncio.sleep(0.5)
        async with asyncio.timeout(20):
            while not (found := [one for one in await store.repairs() if one.ended_at]):
                await asyncio.sleep(0.05)
        assert {(one.reason, one.scanned) for one in found} == {("violation", 1)}


async def test_dead_letters_are_retried_or_discarded(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        core, agent = store._core, store.agent("a\x00")
        await agent.put("sound", 1)
        for name in ("sound", "junk"):
            core.link.send(core.target(agent._agent, name).wire, b"", b"junk")
        await store.flush(20)
        first, second = await store.dead_letters.list()
        assert {(one.agent, one.key, one.size) for one in (first, second)} == {
            (agent.name, "sound", 4), (agent.name, "junk", 4),
        }  # fmt: skip
        assert [one.id for one in await store.dead_letters.list(after=first.id)] == [second.id]
        with pytest.raises(cenote.CodecError):
            await store.dead_letters.retry(first.id)
        await store.dead_letters.discard(first.id)
        await core.db.execute(f"UPDATE {store.config.names.schema('agents')}.dead_letters SET raw = '7'")
        await core.db.execute(f"UPDATE {store.config.names.schema('agents')}.state SET raw = '7' WHERE quarantined")
        assert await store.dead_letters.retry(second.id)
        for gone in (first.id, second.id):
            with pytest.raises(cenote.NotFoundError):
                await store.dead_letters.retry(gone)
            with pytest.raises(cenote.NotFoundError):
                await store.dead_letters.discard(gone)
        assert await store.dead_letters.list() == []


def test_from_the_command_line(cenote_servers: TestServers, capsys: pytest.CaptureFixture[str]) -> None:
    fresh = cenote_servers.fresh()
    cli = Cli(capsys, ["--data-dir", str(fresh["data_dir"]), "--namespace", fresh["namespace"]])
    cli("put", "a", "k", "1")

    async def damage() -> None:
        async with cenote.open(**fresh) as store:
            await store.flush(20)
            await store._core.db.execute(f"DELETE FROM {store.config.names.schema('agents')}.state")

    asyncio.run(damage())
    looked = cli("repair", "--dry-run")
    assert (looked.code, "sql_missing" in looked.out) == (1, True)
    done = cli("repair", "--json").json
    assert (done["found"], done["mended"]) == ({"sql_missing": 1}, {"sql_missing": 1})
    assert cli("repair").code == 0
