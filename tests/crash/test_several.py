"""Several flushers at a time, `flush.active_max`: I1, I3, I8, I16; flow rules 3, 4, 5, 18."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from test_many import lost_nothing, portable, running

import cenote
from cenote.engine.lease import Board
from cenote.engine.slots import beside
from cenote.store import Store
from cenote.testing import TestServers
from witness import demand, reached, tables

THREE = {"flush__active_max": 3, "flush__drain_ms": 0}


async def boards(store: Store) -> list[Board]:
    """Of those who hold a lease at this moment, the primary first."""
    core = store._core
    primary = await store._machines.lease.read()
    found = [] if primary is None else [primary]
    found += await beside(core.link, core.names, 3)
    return [one for one in found if one.holder and one.alive(core.now_ms())]


async def flushing(store: Store, count: int, without: set[int]) -> list[Board]:
    """Wait until so many processes have flushed rows each, none of them one of those; their boards."""
    held: list[Board] = []

    async def all_of_them() -> bool:
        held[:] = await boards(store)
        pids = {one.pid for one in held}
        return len(held) == len(pids) == count and not pids & without and all(one.flushed > 0 for one in held)

    await reached(all_of_them, f"{count} processes that flush")
    return held


@pytest.mark.judge
async def test_three_of_four_flush_and_the_dead_are_replaced(cenote_servers: TestServers, tmp_path: Path) -> None:
    """One beside the primary is killed, then the primary itself, under load: nothing acknowledged is lost, no row of
    SQL ever goes back, and no durable is begun anew for it."""
    settings = portable(cenote_servers.fresh(**THREE))
    async with cenote.open(**settings, flush__enabled=False) as store, tables(cenote_servers, store) as sql:
        with running(settings, tmp_path, count=4, seconds=8, rate=150) as herd:
            await herd.opened()
            await sql.audit()
            herd.go()
            first = await flushing(store, 3, set())
            durable = store._core.durable_name
            flushers = f"SELECT count(*) FROM {sql.schema}.flushers"
            demand(await sql.link.fetchval(flushers) == 3, "more than flush.active_max processes flush")
            stats = await store.stats()
            assert stats.flushed >= sum(one.flushed for one in first)
            os.kill(first[1].pid, signal.SIGKILL)
            second = await flushing(store, 3, {first[1].pid})
            demand(second[0].holder == first[0].holder, "the primary changed, though another died")
            os.kill(second[0].pid, signal.SIGKILL)
            await flushing(store, 2, {first[1].pid, second[0].pid})
            await asyncio.to_thread(herd.process.wait, 60)
        async with cenote.open(**settings):
            await store.flush(30)
        acked = await lost_nothing(sql, store, tmp_path, 4)
        changes = await sql.demand_monotonic()
        demand(store._core.durable_name == durable, "another durable was named, though nothing went back")
        demand((await store.stats()).epoch == 1, "an epoch began, though nothing went back")
    print(f"{acked} acked, {changes} changes of rows")
    assert acked > 1000
