"""Eight processes change one key while one of them and both servers are killed: no acknowledged change is lost, none
counts twice, and nobody starves (I1, I12; flow rules 6 and 16)."""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import adders
import pytest

import cenote
from cenote.store import Store
from cenote.testing import TestServers
from witness import demand, reached, tables

pytestmark = pytest.mark.judge

PROCESSES, TIMES = 8, 500
WAIT_S_MAX = 5.0  # of one update, while the servers answer


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServers]:
    """Servers that may be killed: nobody else uses them."""
    servers = TestServers(tmp_path_factory.mktemp("increments")).start()
    yield servers
    servers.stop()


@pytest.mark.parametrize("kind", adders.KINDS)
async def test_no_acked_increment_of_eight_processes_is_lost(
    kind: str, own_servers: TestServers, tmp_path: Path
) -> None:
    settings = portable(own_servers.fresh(flush__drain_ms=0))
    outages: list[tuple[float, float]] = []
    async with cenote.open(**settings, flush__enabled=False) as store:
        with running(settings, tmp_path, kind=kind, count=PROCESSES, times=TIMES) as herd:
            pids = await opened(herd)
            began = time.monotonic()
            herd.stdin.close()
            await acked(tmp_path, 800)
            os.kill(pids[0], signal.SIGKILL)
            await acked(tmp_path, 1500)
            outages.append(await bounced(own_servers, store, "nats"))
            await acked(tmp_path, 2500)
            outages.append(await bounced(own_servers, store, "postgres"))
            assert await asyncio.to_thread(herd.wait, 240) == 0, "a process failed"
        took_s = time.monotonic() - began
        found = adders.calls(tmp_path, PROCESSES)
        total = await total_of(store, kind)
        unknown, counted = (sum(one.end == end for one in found) for end in ("unknown", "acked"))
        print(f"{kind}: {took_s:.0f} s;", told(found, outages))
        demand(total >= counted, f"I1: {counted} increments were acknowledged, and {total} are there")
        demand(total <= counted + unknown, f"I12: {total} of {counted} acked and {unknown} unknown: one counted twice")
        assert counted + unknown >= (PROCESSES - 1) * TIMES
        assert unknown <= counted / 100, "nothing is known of too many"
        async with cenote.open(**settings), tables(own_servers, store) as sql:
            await store.flush(20)
            row = json.loads(await sql.value(store.agent(adders.AGENT), adders.KEY) or "null")
            demand((row if kind == "plain" else row["$pncounter"]["value"]) == total, f"I1: SQL holds {row}")
        starved = [one for one in found if one.waited_s > WAIT_S_MAX and calm(one, outages)]
        demand(not starved, f"these waited too long: {starved}")


@pytest.mark.parametrize("kind", adders.KINDS)
async def test_who_reads_and_puts_loses_increments(kind: str, own_servers: TestServers, tmp_path: Path) -> None:
    """The judge sees it: the same processes, without `update`."""
    settings = portable(own_servers.fresh(flush__drain_ms=0))
    async with cenote.open(**settings, flush__enabled=False) as store:
        with running(settings, tmp_path, kind=kind, count=PROCESSES, times=50, careless=True) as herd:
            await opened(herd)
            herd.stdin.close()
            assert await asyncio.to_thread(herd.wait, 60) == 0, "a process failed"
        assert await total_of(store, kind) < sum(one.end == "acked" for one in adders.calls(tmp_path, PROCESSES))


async def total_of(store: Store, kind: str) -> int:
    """What the key has come to."""
    held = await store.agent(adders.AGENT).get(adders.KEY)
    return int(held if kind == "plain" else held.value)


def calm(call: adders.Call, outages: list[tuple[float, float]]) -> bool:
    """Whether the servers answered all the while, and the process lived."""
    return call.ended < float("inf") and all(call.ended < began or call.began > ended for began, ended in outages)


def told(found: list[adders.Call], outages: list[tuple[float, float]]) -> dict[str, Any]:
    """The figures of a run."""
    ends = [one.end for one in found]
    waits = sorted(one.waited_s for one in found if calm(one, outages))
    each = [
        statistics.median(one.waited_s for one in found if one.process == number and calm(one, outages))
        for number in range(PROCESSES)
    ]
    return {
        **{end: ends.count(end) for end in sorted(set(ends))},
        "outages": [f"{ended - began:.1f} s" for began, ended in outages],
        "wait": f"median {waits[len(waits) // 2]:.3f}, p99 {waits[len(waits) * 99 // 100]:.3f}, most {waits[-1]:.3f} s",
        "medians of the processes": f"{min(each):.3f} to {max(each):.3f} s",
    }


async def bounced(servers: TestServers, store: Store, name: str) -> tuple[float, float]:
    """Kill a server, and wait until it is back and a write is in SQL; from when to when it was away."""
    pid = servers.info[name]["pid"]
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    await reached(lambda: servers.info[name]["pid"] != pid, f"another {name}")
    while True:
        try:
            receipt = await store.agent("witness").put("after", name)
            await receipt.durable(20)
            return began, time.monotonic()
        except (cenote.UnavailableError, cenote.OutcomeUnknownError):
            await asyncio.sleep(0.02)


async def acked(directory: Path, count: int) -> None:
    """Wait for so many acknowledged increments."""

    def enough() -> bool:
        return sum(one.end == "acked" for one in adders.calls(directory, PROCESSES)) >= count

    await reached(enough, f"{count} increments", within_s=120)


async def opened(herd: "subprocess.Popen[bytes]") -> list[int]:
    """Wait until all have opened the store; their pids."""
    assert herd.stdout is not None
    said: list[bytes] = []
    async with asyncio.timeout(60):
        while len(said) < 2 * PROCESSES:
            said.append(await asyncio.to_thread(herd.stdout.readline))
    return [int(line) for line in said if line != b"open\n"]


@contextmanager
def running(settings: dict[str, Any], directory: Path, **given: Any) -> Iterator[Any]:
    """The processes, until the end of the block."""
    command = [sys.executable, adders.__file__, json.dumps({"settings": settings, "directory": str(directory)} | given)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def portable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that JSON can carry."""
    return {name: str(one) if isinstance(one, Path) else one for name, one in settings.items()}
