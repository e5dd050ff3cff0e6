"""What an agent says of itself under faults: KV and SQL end equal (S11; I3, I16; flow rules 5, 23)."""

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import rewinds

import cenote
from cenote.engine.registrar import Registrar
from cenote.model import key as keys
from cenote.repositories.agents import Agent, Agents
from cenote.store import Store
from cenote.testing import FaultProxy, TestServers
from witness import Tables, another, demand, eventually, tables, toothed

SCOUT = Agent(name="scout-7", type="scout")
FLUSHER = """
import asyncio, json, sys, cenote
async def main():
    async with cenote.open(**json.loads(sys.argv[1])) as store:
        print("open", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


def one_flow_for_both_tiers(patch: pytest.MonkeyPatch) -> None:
    """The specification's asyncTask: a save goes to KV, and on a connection of its own to SQL."""
    plain, tasks = Agents.save, set()

    async def save(self: Agents, agent: Agent, /) -> Agent:
        saved = await plain(self, agent)
        table = f"{self._core.names.schema('agents')}.registry"
        query = f"UPDATE {table} SET agent_type = $2, status = $3, metadata = $4::text::jsonb WHERE agent_id = $1"
        task = asyncio.create_task(
            self._core.db.execute(query, saved.id, saved.type, saved.status, json.dumps(saved.metadata))
        )
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return saved

    async def register(self: Registrar, agents: set[keys.AgentRef], _: object) -> None:
        await self._name((agents - keys.RESERVED_AGENTS.keys()) | {keys.agent_ref("scout-7")})

    async def nothing(self: Registrar) -> None: ...

    patch.setattr(Agents, "save", save)
    patch.setattr(Registrar, "register", register)
    patch.setattr(Registrar, "_catch_up", nothing)


async def said(sql: Tables, agent: Agent) -> tuple[Any, ...]:
    query = f"SELECT status, metadata::text, epoch, version FROM {sql.schema}.registry WHERE agent_id = $1"
    row = await sql.link.fetchrow(query, agent.id)
    return () if row is None else (row[0], json.loads(row[1]), (row[2], row[3]))


async def equal(sql: Tables, *stores: Store) -> bool:
    """Whether the registry says what each of these finds."""
    row = await said(sql, SCOUT)
    found = [await store.agents.find("scout-7") for store in stores]
    return all(row[:2] == (one.status, one.metadata) and (row[2] == one.version) for one in found)


@pytest.mark.judge
@toothed(one_flow_for_both_tiers)
async def test_s11_two_saves_at_once_end_equal_in_both_tiers(cenote_servers: TestServers) -> None:
    """One of the two reaches PostgreSQL 300 ms later than the other, whoever of them flushes."""
    address = urlsplit(cenote_servers.sql_dsn)
    assert address.port is not None
    async with FaultProxy(address.port) as proxy:
        slow_dsn = cenote_servers.sql_dsn.replace(f":{address.port}/", f":{proxy.port}/")
        async with (
            cenote.open(**cenote_servers.fresh(flush__active_max=2)) as fast,
            tables(cenote_servers, fast) as sql,
            another(fast, sql=slow_dsn, flush__enabled=True, flush__active_max=2) as slow,
        ):
            await asyncio.gather(fast.agents.save(SCOUT), slow.agents.save(SCOUT))
            await fast.flush(20)
            proxy.delay_s = 0.3
            for number in range(3):
                one = slow.agents.save(replace(SCOUT, status="slow", metadata={"n": number}))
                other = fast.agents.save(replace(SCOUT, status="fast", metadata={"n": number}))
                await asyncio.gather(one, other)
                await fast.agents.save(replace(SCOUT, status="last", metadata={"n": number}))
                await fast.flush(20)
                await asyncio.sleep(1)  # whatever is still on its way arrives
                demand(await equal(sql, fast, slow), f"S11: KV and SQL differ: {await said(sql, SCOUT)}")
            assert proxy.accepted > 0
            proxy.delay_s = 0.0


async def test_a_flusher_killed_between_the_commit_and_the_registry(cenote_servers: TestServers) -> None:
    settings = cenote_servers.fresh(flush__enabled=False, flush__drain_ms=0)
    async with cenote.open(**settings) as store, tables(cenote_servers, store) as sql:
        saved = await store.agents.save(replace(SCOUT, status="diving", metadata={"depth_m": 40}))
        given = json.dumps({**settings, "data_dir": str(settings["data_dir"]), "flush__enabled": True})
        crashing = os.environ | {"CENOTE_CRASH_AT": "flush.committed"}
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", FLUSHER, given, env=crashing)
        async with asyncio.timeout(30):
            assert await process.wait() == -signal.SIGKILL
        assert await store._core.table.read(keys.PROFILES.id, "scout-7") is not None
        assert await said(sql, saved) == ()
        async with another(store, flush__enabled=True):
            await eventually(lambda: equal(sql, store), "I16: the registry heals by itself")
        assert (await said(sql, saved))[2] == saved.version


async def test_what_was_acknowledged_while_the_registry_refused_is_made_up_for(cenote_servers: TestServers) -> None:
    """By the next flusher: the one that could not write it is gone, and nothing is delivered again."""
    settings = cenote_servers.fresh(flush__enabled=False, flush__drain_ms=0)
    async with cenote.open(**settings) as store, tables(cenote_servers, store) as sql:
        await sql.link.execute(f"ALTER TABLE {sql.schema}.registry RENAME COLUMN status TO away")
        async with another(store, flush__enabled=True):
            await store.agents.save(replace(SCOUT, status="diving"))
            await store.flush(20)
        await sql.link.execute(f"ALTER TABLE {sql.schema}.registry RENAME COLUMN away TO status")
        assert (await said(sql, SCOUT))[0] == "unknown"
        async with another(store, flush__enabled=True):
            await eventually(lambda: equal(sql, store), "I16: the next flusher makes up for it")


@pytest.mark.judge
async def test_after_sql_has_gone_back_the_registry_says_again_what_kv_holds(tmp_path: Path) -> None:
    with rewinds.arena(tmp_path) as arena:
        settings = arena.settings()
        async with cenote.open(**settings) as store:
            await store.agents.save(replace(SCOUT, status="before"))
            await store.flush(20)
            await arena.image_sql()
            saved = await store.agents.save(replace(SCOUT, status="after", metadata={"n": 1}))
            await store.agents.save(Agent(name="newcomer", status="new"))
            await store.flush(20)
            await asyncio.sleep(0.9)  # the flusher looks each 0.4 s how many commits there are
            await arena.put_back_sql()

            async def healed() -> bool:
                try:
                    found = {one.name: one for one in await store.agents.list()}
                except cenote.UnavailableError:
                    return False
                return found.get("scout-7") == saved and found.get("newcomer") is not None

            await eventually(healed, "I1: the registry lacks what KV holds")
            assert (await store.agents.find("newcomer")).status == "new"
