"""Eight processes add to one counter while one of them and both servers are killed: what JetStream adds up is exactly
what was acknowledged, but for the few whose answer died with the server (I1, I12; flow rules 4 and 16)."""

import asyncio
import os
import signal
from pathlib import Path

import adders
import pytest
from test_increments import PROCESSES, TIMES, acked, bounced, opened, own_servers, portable, running, told

import cenote
from cenote.testing import TestServers
from witness import demand, tables

__all__ = ["own_servers"]  # a fixture

pytestmark = pytest.mark.judge


async def test_no_acked_addition_of_eight_processes_is_lost(own_servers: TestServers, tmp_path: Path) -> None:
    settings = portable(own_servers.fresh(flush__drain_ms=0))
    outages: list[tuple[float, float]] = []
    async with cenote.open(**settings, flush__enabled=False) as store:
        with running(settings, tmp_path, kind=adders.SWARM, count=PROCESSES, times=TIMES) as herd:
            pids = await opened(herd)
            herd.stdin.close()
            await acked(tmp_path, 500)
            os.kill(pids[0], signal.SIGKILL)
            await acked(tmp_path, 1000)
            outages.append(await bounced(own_servers, store, "nats"))
            await acked(tmp_path, 2000)
            outages.append(await bounced(own_servers, store, "postgres"))
            assert await asyncio.to_thread(herd.wait, 100) == 0, "a process failed"
        found = adders.calls(tmp_path, PROCESSES)
        unknown, counted = (sum(one.end == end for one in found) for end in ("unknown", "acked"))
        print(told(found, outages))
        for began, ended in outages:
            assert any(one.began > ended for one in found), "the outage came too late"
            assert any(one.ended < began for one in found), "the outage came too early"
        total = await store.counter(adders.KEY).value()
        demand(total >= counted, f"I1: {counted} additions were acknowledged, and the total is {total}")
        demand(total <= counted + unknown, f"I12: {total} of {counted} acked and {unknown} unknown: one counted twice")
        assert counted + unknown >= (PROCESSES - 1) * TIMES
        assert unknown <= PROCESSES + 1, "more are unknown than can have been under way"
        async with cenote.open(**settings) as last, tables(own_servers, last) as sql:
            await last.flush(20)
            row = await sql.link.fetchval(f"SELECT value FROM {sql.schema}.counters WHERE name = $1", adders.KEY)
            demand(row == total, f"I1: SQL holds {row}, the counter {total}")
