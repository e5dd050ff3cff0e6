"""kill -9 at each point of a checkpoint, of its removal, of an import, of a policy and of expiry: what was kept is
whole, what was not is not to be seen, and a second process does it, or finishes it (I1, I9)."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import cenote
from cenote.agent import AgentState
from cenote.lifecycle import Phase
from cenote.store import Store
from cenote.testing import TestServers
from witness import another, demand, eventually, evict_all

KEEPER = Path(__file__).with_name("keeper.py")
WAS: dict[str, Any] = {f"k{n}": {"n": n} for n in range(20)} | {"large": "x" * 600_000}


async def die(settings: dict[str, Any], point: str, work: str, given: str = "") -> None:
    """A process does this work and is killed at this point."""
    told = {name: str(one) if isinstance(one, Path) else one for name, one in settings.items()}
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(KEEPER), json.dumps(told), work, given, env=os.environ | {"CENOTE_CRASH_AT": f"{point}:1"}
    )
    try:
        async with asyncio.timeout(40):
            code = await child.wait()
    finally:
        if child.returncode is None:
            child.kill()
    assert code == -signal.SIGKILL, f"it never crossed {point}: it ended with {code}"


async def now(agent: AgentState) -> dict[str, Any]:
    return {key: value async for key, value in agent.items()}


async def kept(agent: AgentState) -> list[dict[str, Any]]:
    """What each checkpoint holds, the oldest first."""
    marks = (await agent.checkpoints()).items
    return [{key: value async for key, value in agent.items(at=mark)} for mark in reversed(marks)]


async def filled(store: Store) -> list[dict[str, Any]]:
    """Two checkpoints, of which the second stands on the first, and a change since; what each moment was."""
    agent = store.agent("a")
    await agent.put_many(WAS)
    await agent.checkpoint()
    await agent.put("k1", "second")
    await agent.checkpoint()
    await store.flush(20)
    await evict_all(store)
    await agent.put("k2", "third")
    await agent.delete("k3")
    second = WAS | {"k1": "second"}
    third = {key: value for key, value in (second | {"k2": "third"}).items() if key != "k3"}
    return [WAS, second, third]


@pytest.mark.judge
@pytest.mark.parametrize("point", ["cut", "rows", "parts", "added", "rebase"])
async def test_a_crash_in_a_checkpoint(point: str, cenote_servers: TestServers) -> None:
    settings = cenote_servers.fresh()
    async with cenote.open(**settings) as store, another(store) as other:
        moments, agent = await filled(store), other.agent("a")
        await die(settings, f"checkpoint.{point}", "checkpoint")
        there = 3 if point in ("added", "rebase") else 2
        demand(await kept(agent) == moments[:there], "I9: a checkpoint that was interrupted is no moment")
        await agent.checkpoint()
        demand(await kept(agent) == [*moments[:there], moments[2]], "I9: the one after it is no moment")
        demand(await now(agent) == moments[2], "I1: the agent itself was changed")


@pytest.mark.judge
async def test_a_crash_in_a_removal(cenote_servers: TestServers) -> None:
    settings = cenote_servers.fresh()
    async with cenote.open(**settings) as store, another(store) as other:
        moments, agent = await filled(store), other.agent("a")
        first = (await agent.checkpoints()).items[-1]
        await die(settings, "checkpoint.remove", "remove", str(first.id))
        demand(await kept(agent) == moments[:2], "I9: half of a removal is to be seen")
        await agent.delete_checkpoint(first)
        demand(await kept(agent) == moments[1:2], "I9: what stood on it is not whole")


@pytest.mark.judge
@pytest.mark.parametrize("point", ["import.read", "import.added", "restore.kept", "restore.written"])
async def test_a_crash_in_an_import(point: str, cenote_servers: TestServers, tmp_path: Path) -> None:
    settings, file = cenote_servers.fresh(), tmp_path / "a.export"
    async with cenote.open(**cenote_servers.fresh()) as source:
        moments = await filled(source)
        file.write_bytes(b"".join([line async for line in source.agent("a").export()]))
    async with cenote.open(**settings) as store:
        await die(settings, point, "import", str(file))
        agent = store.agent("a")
        found, marks = await now(agent), (await agent.checkpoints()).items
        if point == "import.read":
            demand((found, marks) == ({}, []), "I9: half of an import is to be seen")
            await store.import_agent(file.read_bytes().splitlines(keepends=True))
        else:
            demand((await kept(agent))[:3] == moments, "I9: a checkpoint that came in is not what went out")
            demand(found == (moments[2] if point == "restore.written" else {}), "I9: half of an import is to be seen")
            await agent.restore(next(one for one in marks if one.seq == 3))
        demand(await now(agent) == moments[2], "I9: what is done is not what went out")


@pytest.mark.judge
@pytest.mark.parametrize("point", ["expire.begun", "expire.decided"])
async def test_a_crash_in_an_expiry(point: str, cenote_servers: TestServers) -> None:
    settings = cenote_servers.fresh(flush__drain_ms=0)
    async with cenote.open(**settings) as store:
        agent = store.agent("a")
        await agent.put("k", 1)
        await store.flush(20)
        await evict_all(store)
        await die(settings, point, "expire")
        assert await agent.phase() is Phase.FLUSHING
        assert await agent.get("k") == 1
        await evict_all(store)
        schema = store.config.names.schema("agents")
        await store._core.db.execute(f"UPDATE {schema}.lifecycle SET until = now() - interval '1 s'")
        assert await agent.phase() is Phase.COLD
        await next(one for one in store._core.chores if one.name == "lifecycle").work()
        assert await agent.phase() is Phase.EXPIRED


@pytest.mark.judge
@pytest.mark.parametrize("point", ["policy.claimed", "policy.kept"])
async def test_a_crash_in_a_policy(point: str, cenote_servers: TestServers) -> None:
    settings = cenote_servers.fresh(checkpoints__every_writes=1)
    async with cenote.open(**settings, flush__enabled=False):
        await die(settings, point, "policy")
    async with cenote.open(**settings) as store:
        agent = store.agent("a")

        async def made() -> bool:
            return bool((await agent.checkpoints()).items)

        await eventually(made, "what was due was forgotten")
        assert await kept(agent) == [{"k": 1}] * len((await agent.checkpoints()).items)
