"""Several flushers at a time, `flush.active_max`: one of them dies, one sleeps over what went back in time (I1, I3, I8,
I11, I16; flow rules 3, 4, 5, 18)."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import rewinds
from rewinds import Arena
from test_many import Herd, lost_nothing, portable, running

import cenote
from cenote.engine.lease import Board
from cenote.engine.lineage import Lineage
from cenote.engine.slots import beside
from cenote.store import Store
from cenote.testing import TestServers
from witness import demand, reached, tables, toothed

sys.path.append(str(Path(__file__).parents[1] / "integration"))

from kv_past import past
from test_several_flushers import only_beside

pytestmark = pytest.mark.judge

TWO: dict[str, Any] = {"flush__active_max": 2, "flush__drain_ms": 0}
THREE: dict[str, Any] = {"flush__active_max": 3, "flush__drain_ms": 0}


# --- the rule, taken out ------------------------------------------------------------------------------------


def the_mark_of_the_durable(patch: pytest.MonkeyPatch) -> None:
    """Who follows does not ask for which PostgreSQL a durable was named."""

    async def follow(self: Lineage, durable: str) -> None:
        await self.demand()

    patch.setattr(Lineage, "follow", follow)


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with rewinds.arena(tmp_path_factory.mktemp("arena")) as servers:
        yield servers


# --- one dies -----------------------------------------------------------------------------------------------


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
            await store._core.probe_once()  # this process may not have looked since they began
            durable = store._core.durable_name
            assert durable is not None
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
        await store._core.probe_once()
        now = store._core.durable_name
        demand(now == durable, f"another durable was named, though nothing went back: {now} is not {durable}")
        demand((await store.stats()).epoch == 1, "an epoch began, though nothing went back")
    print(f"{acked} acked, {changes} changes of rows")
    assert acked > 1000


# --- one sleeps ---------------------------------------------------------------------------------------------


async def test_a_second_that_slept_over_an_epoch_change(cenote_servers: TestServers, tmp_path: Path) -> None:
    """It was frozen with entries in hand that the stream has lost since, and wakes up in the next epoch."""
    with past(tmp_path, cenote_servers) as kv:
        settings = portable(kv.settings | TWO)
        async with cenote.open(**settings) as store, tables(cenote_servers, store) as sql:
            await store.agent("a").put("k", 0, durability="sql")
            await sql.audit()
            await store.agent("kept").put_many({f"k{number}": number for number in range(20)})
            await store.flush(10)
            kv.remember()
            with running(settings, tmp_path, count=1, freeze=True) as herd:
                pid = await frozen_in_hand(store, herd)
                async with named(store) as names:
                    await kv.rewind(store)
                    await store.agent("new").put("k", 1)
                    await store.flush(20)
                    lost = f"SELECT count(*) FROM {sql.schema}.state WHERE agent_id = $1"
                    before = await sql.link.fetchval(lost, store.agent("in hand").id)
                    await woken(store, pid)
                    demand(
                        await sql.link.fetchval(lost, store.agent("in hand").id) == before,
                        "I1, I3: what the stream lost came to SQL out of a frozen hand",
                    )
                demand(len(names) == 2, f"durables were fought over: {names}")
                assert (await store.stats()).epoch == 2
                await sql.demand_monotonic()
                for number in range(20):
                    assert await store.agent("kept").get(f"k{number}") == number


async def test_a_second_that_slept_over_a_rewind_of_postgresql(arena: Arena, tmp_path: Path) -> None:
    """It was frozen with entries in hand; PostgreSQL goes back; the primary names another durable, and nobody else."""
    settings = portable(arena.settings(**TWO))
    async with cenote.open(**settings) as store:
        await store.agent("a").put("k", 0, durability="sql")
        await arena.image_sql()
        with running(settings, tmp_path, count=1, freeze=True) as herd:
            pid = await frozen_in_hand(store, herd)
            async with named(store) as names:
                durable = store._core.durable_name
                await arena.put_back_sql()
                await reached(lambda: store._core.durable_name not in (durable, None), "the next durable")
                await store.agent("in hand").put("k0", "newer")
                await store.flush(20)
                await woken(store, pid)
            demand(len(names) == 2, f"durables were fought over: {names}")
            agent = store.agent("in hand")
            entries = await agent.get_many([key async for key in agent.keys()])
            assert len(entries) > 1
            for key, value in entries.items():
                row = await store._core.table.read(agent.id, key)
                demand(row is not None, f"I1: {key} was acknowledged, and is not in SQL")
                assert row is not None
                demand(
                    row.value == (f'"{value}"' if key == "k0" else str(value)), f"I3: {key} went back to {row.value}"
                )


@toothed(the_mark_of_the_durable)
async def test_nobody_follows_into_another_postgresql(arena: Arena) -> None:
    """PostgreSQL has lost commits, and the primary, which hangs, does not know it yet: its durable says of entries that
    they are in SQL, and no other process may add to that."""
    settings = arena.settings(**TWO)
    async with cenote.open(**settings) as first:
        await first.agent("a").put("k", 0, durability="sql")
        identity, go_on = first._core.db.identity, asyncio.Event()

        async def slowly() -> Any:
            await go_on.wait()
            return await identity()

        first._core.db.identity = slowly  # type: ignore[method-assign]  # one store's, not the class's
        await asyncio.to_thread(arena.pg.stop)
        await asyncio.to_thread(arena.pg.start)
        async with cenote.open(**settings, flush__enabled=False) as second, only_beside(second):
            for number in range(50):
                await second.agent("b").put_many({f"k{key}": number for key in range(20)})
                demand(second._core.counts.delivered == 0, "rule 5: settled what a durable of another PostgreSQL gave")
                await asyncio.sleep(0.05)
            go_on.set()

            async def follows() -> bool:
                await second.agent("b").put_many({f"k{key}": 0 for key in range(20)})
                return second._core.counts.delivered > 0

            await reached(follows, "a second flusher")
            await second.flush(20)


# --- within -------------------------------------------------------------------------------------------------


async def frozen_in_hand(store: Store, herd: Herd) -> int:
    """Write until the only process of the herd has stopped itself with entries in hand; its pid."""
    await herd.opened()
    (pid,), number = herd.pids(), 0

    async def stopped() -> bool:
        nonlocal number
        number += 1
        await store.agent("in hand").put_many({f"k{number}.{key}": number for key in range(20)})
        return stands_still(pid)

    await reached(stopped, "a second flusher that sleeps with entries in hand")
    return pid


def stands_still(pid: int) -> bool:
    """Whether SIGSTOP has reached it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def woken(store: Store, pid: int) -> None:
    """Wake it up, and go on until it has noticed what happened meanwhile, and has had time to spoil something."""
    os.kill(pid, signal.SIGCONT)
    for number in range(30):
        await store.agent("after").put("k", number)
        await asyncio.sleep(0.1)
        if stands_still(pid):
            os.kill(pid, signal.SIGCONT)  # it follows again, and stops itself at each batch
    await store.flush(20)


@asynccontextmanager
async def named(store: Store) -> AsyncIterator[set[str]]:
    """The durables that the stream's metadata names meanwhile."""
    names: set[str] = set()

    async def look() -> None:
        while True:
            names.update({store._core.durable_name} - {None})
            await asyncio.sleep(0.01)

    task = asyncio.create_task(look())
    try:
        yield names
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


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
