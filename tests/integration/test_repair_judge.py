"""Many differences of each kind, under load, and a repair that is killed half-way: all are mended, none is invented."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from damage import held, planted

import cenote
from cenote import limits
from cenote.testing import TestServers
from witness import demand, tables

REPAIRER = Path(__file__).with_name("repairer.py")
SOUND = int(os.environ.get("REPAIR_SOUND", "20000"))
EACH = int(os.environ.get("REPAIR_EACH", "150"))


async def killed(settings: dict[str, Any], point: str) -> None:
    """A process repairs and is killed at this point."""
    told = {name: str(one) if isinstance(one, Path) else one for name, one in settings.items()}
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(REPAIRER), json.dumps(told), env=os.environ | {"CENOTE_CRASH_AT": point}
    )
    try:
        async with asyncio.timeout(100):
            code = await child.wait()
    finally:
        if child.returncode is None:
            child.kill()
    assert code == -signal.SIGKILL, f"it never crossed {point}: it ended with {code}"


@pytest.mark.judge
@pytest.mark.timeout(600)
async def test_all_is_found_and_mended_under_load(cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two pages, in the midst of one that has differences, and after some were mended:
    the figures of the run that goes on are exact."""
    monkeypatch.setattr(limits, "REPAIR_SILENT_S", 0.2)
    settings = cenote_servers.fresh()
    async with cenote.open(**settings) as store, tables(cenote_servers, store) as sql:
        agent, busy, sound = (store.agent(name) for name in ("damaged", "busy", "sound"))
        for start in range(0, SOUND, 1_000):
            await sound.put_many({f"k{n}": {"n": n} for n in range(start, min(SOUND, start + 1_000))})
        found, expected = await planted(store, sql, agent, EACH)
        stop = asyncio.Event()

        async def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                await busy.put(f"k{number % 100}", number)
                await asyncio.sleep(0.001)

        writing = asyncio.create_task(write())
        try:
            await killed(settings, f"repair.page:{SOUND // limits.REPAIR_PAGE_KEYS // 2}")
            await killed(settings, "repair.found:2")
            await killed(settings, "repair.mended:1")
            await asyncio.sleep(0.5)
            done, again = await store.repair(), await store.repair()
        finally:
            stop.set()
            await writing
        print(f"{done.scanned} entries, {done.found} found, of {found}")
        demand((done.left, again.found) == ({}, {}), f"I3: not all was mended: {done.left}, {again.found}")
        demand(done.found == found, f"not what was planted: {done.found}")
        assert done.scanned >= SOUND
        demand(await held(agent) == expected, "I1: what was mended is not what was written")
