"""Repair: differences of each kind, planted past cenote, are found, mended, and none is invented."""

import asyncio
import os
from datetime import timedelta

import pytest
from cli_run import Cli
from damage import held, planted, row_lost

import cenote
from cenote.agent import AgentState
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
