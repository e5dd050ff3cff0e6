"""kill -9 at each point of a restore: readers see the old state or the new one, or it is in progress and says so; a
second process finishes it, and what others have written since stays (I1, I9)."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cenote
from cenote.agent import AgentState
from cenote.engine.restore import Restorer
from cenote.testing import TestServers
from witness import demand, toothed

RESTORER = Path(__file__).with_name("restorer.py")
NAMES = ["one", "two"]
LARGE = ["restore.kept:1", "restore.recorded:1", "restore.batch:1", "restore.batch:3", "restore.done:1"]
SMALL = ["checkpoint.parts:1", "checkpoint.added:1", "restore.kept:1", "batch.sent:1", "restore.written:1"]


def die(settings: dict[str, Any], wanted: dict[str, str], batch: int, point: str) -> None:
    """A process restores and is killed at this point; blocks, for a thread."""
    order = json.dumps({"settings": settings, "wanted": wanted, "batch": batch})
    environment = os.environ | {"CENOTE_CRASH_AT": point}
    with subprocess.Popen([sys.executable, str(RESTORER), order], env=environment) as process:
        try:
            code = process.wait(40)
        finally:
            process.kill()
    assert code == -signal.SIGKILL, f"it never crossed {point}: it ended with {code}"


async def state(agent: AgentState) -> dict[str, Any]:
    return {key: value async for key, value in agent.items()}


def finishing(patch: pytest.MonkeyPatch) -> None:
    """Nobody goes on with what somebody has begun."""

    async def nothing(self: Restorer, agent: object) -> list[object]:
        return []

    patch.setattr(Restorer, "finish", nothing)


@pytest.mark.judge
@pytest.mark.parametrize("point", LARGE)
async def test_a_crash_in_a_large_restore(point: str, cenote_servers: TestServers) -> None:
    await crashed(point, 7, cenote_servers)


@pytest.mark.judge
@pytest.mark.parametrize("point", SMALL)
async def test_a_crash_in_a_small_restore(point: str, cenote_servers: TestServers) -> None:
    await crashed(point, 1_000, cenote_servers)


@pytest.mark.judge
@toothed(finishing)
async def test_it_is_finished(cenote_servers: TestServers) -> None:
    await crashed("restore.batch:1", 7, cenote_servers)


async def crashed(point: str, batch: int, servers: TestServers) -> None:
    """Two agents are restored together by a process that dies."""
    settings = {name: str(one) if name == "data_dir" else one for name, one in servers.fresh().items()}
    was = {f"k{n}": {"n": n} for n in range(20)}
    async with cenote.open(**settings) as store:
        agents = [store.agent(name) for name in NAMES]
        marks = {}
        for agent in agents:
            await agent.put_many(was)
            marks[agent.name] = str((await agent.checkpoint()).id)
        old = dict.fromkeys(was, "new") | {"fresh": 1}
        for agent in agents:
            await agent.put_many(old)
            await agent.delete("k1")
        del old["k1"]
        await store.flush(20)
    await asyncio.to_thread(die, settings, marks, batch, point)
    async with cenote.open(**settings) as store:
        agents = [store.agent(name) for name in NAMES]
        seen = [await state(agent) for agent in agents]
        if await agents[0].restoring() is None:
            demand(seen in ([old, old], [was, was]), f"I9: a mixture is called done: {seen}")
            assert point not in ("restore.recorded:1", "restore.batch:1", "restore.batch:3")
            return
        assert point in ("restore.recorded:1", "restore.batch:1", "restore.batch:3")
        await agents[1].put("k2", "since")
        done = await agents[0].finish_restore()
        demand(await agents[1].restoring() is None, "I9: the restore is not finished")
        assert {one.agent for one in done} == set(NAMES)
        assert [one.left for one in done if one.agent == "two"] == [("k2",)]
        demand(await state(agents[0]) == was, "I9: what is done is no restore")
        demand(await state(agents[1]) == was | {"k2": "since"}, "I1: a write since was lost")
