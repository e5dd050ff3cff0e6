"""kill -9 at each point of the mending, after KV went back in time: the next flusher ends what was begun, and nothing
that SQL holds is lost, hidden or undone (I1, I2, I3; flow rule 4)."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import frozen
import pytest
import rewinds
from kv_past import past

from cenote.engine.mender import Mender
from cenote.testing import TestServers
from witness import another, demand, evict_all, tables, toothed

AGENT = "mended"
KEYS = [f"k{number}" for number in range(20)]


def the_mender(patch: pytest.MonkeyPatch) -> None:
    """The next flusher takes KV as it is."""

    async def run(self: Mender) -> int:
        return 0

    patch.setattr(Mender, "run", run)


def die_mending(settings: dict[str, Any], point: str) -> None:
    """A flusher opens the store and is killed at this point of the mending; blocks, for a thread."""
    order = json.dumps({"settings": settings, "point": "", "replaced": []})
    environment = os.environ | {"CENOTE_CRASH_AT": point}
    with subprocess.Popen(
        [sys.executable, frozen.__file__, order], env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        try:
            code = process.wait(30)
        finally:
            process.kill()
    assert code == -signal.SIGKILL, f"it never crossed {point}: it ended with {code}"


@pytest.mark.judge
@toothed(the_mender)
@pytest.mark.parametrize("point", ["mend.bound:1", "mend.compared:1", "mend.replaced:3"])
async def test_killed_while_mending(point: str, cenote_servers: TestServers, tmp_path: Path) -> None:
    """Much is left to be mended."""
    await killed(point, cenote_servers, tmp_path)


@pytest.mark.judge
@pytest.mark.parametrize("point", ["mend.done:1", "mend.announced:1"])
async def test_killed_when_all_is_mended(point: str, cenote_servers: TestServers, tmp_path: Path) -> None:
    """Nothing is left but to tell of it, and to flush."""
    await killed(point, cenote_servers, tmp_path)


async def killed(point: str, cenote_servers: TestServers, tmp_path: Path) -> None:
    """KV shows old entries of all keys; who begins to replace them dies."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store:
            agent = store.agent(AGENT)
            await agent.put_many(dict.fromkeys([*KEYS, "gone"], "old"))
            await store.flush(20)
            kv.remember()
            await agent.put_many(dict.fromkeys(KEYS, "newer"))
            await agent.delete("gone")
            await store.flush(20)
            async with tables(cenote_servers, store) as sql:
                await sql.audit()
        await asyncio.to_thread(kv.go_back)
        await asyncio.to_thread(die_mending, kv.settings, point)
        expected = dict.fromkeys(KEYS, "newer") | {"gone": None, "fresh": "acked"}
        async with kv.open() as heir, tables(cenote_servers, heir) as sql:
            agent = heir.agent(AGENT)
            await agent.put("fresh", "acked")
            found = {key: await agent.get(key) for key in expected}
            demand(found == expected, f"I1, I2: KV hides what SQL has: {found}")
            await heir.flush(20)
            await rewinds.at_rest(heir, sql)
            await evict_all(heir)
            async with another(heir) as other:
                found = {key: await other.agent(AGENT).get(key) for key in expected}
            demand(found == expected, f"I1, I2: evicted, {found}")
            assert await sql.demand_monotonic() >= 1
            assert (await sql.row(agent, "gone") or {"deleted": False})["deleted"]
