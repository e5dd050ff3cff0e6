"""kill -9 at each point of a fork: it holds all of its checkpoint, and a second process finishes the copy (I1, I9)."""

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
from cenote.engine.forks import Forks
from cenote.testing import TestServers
from witness import demand, toothed

FORKER = Path(__file__).with_name("forker.py")


def die(settings: dict[str, Any], checkpoint: str, point: str) -> None:
    """A process forks, reads the fork and is killed at this point; blocks, for a thread."""
    order = json.dumps({"settings": settings, "checkpoint": checkpoint})
    environment = os.environ | {"CENOTE_CRASH_AT": point}
    with subprocess.Popen([sys.executable, str(FORKER), order], env=environment) as process:
        try:
            code = process.wait(40)
        finally:
            process.kill()
    assert code == -signal.SIGKILL, f"it never crossed {point}: it ended with {code}"


def finishing(patch: pytest.MonkeyPatch) -> None:
    """Nobody goes on with a copy that somebody has begun."""

    async def nothing(self: Forks, *_: object, **__: object) -> None:
        return None

    patch.setattr(Forks, "copied", nothing)


@pytest.mark.judge
@pytest.mark.parametrize("point", ["fork.mark:1", "fork.copy:1", "fork.copy:2", "fork.copied:1"])
async def test_a_crash_in_a_fork(point: str, cenote_servers: TestServers) -> None:
    await crashed(point, cenote_servers)


@pytest.mark.judge
@toothed(finishing)
async def test_it_is_finished(cenote_servers: TestServers) -> None:
    await crashed("fork.copy:2", cenote_servers)


async def crashed(point: str, servers: TestServers) -> None:
    settings = {name: str(one) if name == "data_dir" else one for name, one in servers.fresh().items()}
    was = {f"k{n}": {"n": n} for n in range(20)}
    async with cenote.open(**settings) as store:
        source = store.agent("source")
        await source.put_many(was)
        first = await source.checkpoint()
        await source.put_many(now := {"k0": "changed", "k1": "changed"})  # a delta: two parts to copy
        mark = await source.checkpoint()
        assert mark.parent == first.id
        await asyncio.to_thread(die, settings, str(mark.id), point)
        fork = store.agent("fork")
        demand(await fork.get("k2") == {"n": 2}, "I9: a part of a fork is called done")
        demand({key: one async for key, one in fork.items()} == was | now, "I9: a mixture is called done")
        demand(not await store._core.rows.marks.pending(fork._agent.id), "the copy was not finished")
