"""Once all faults are healed everything is well within 10 s, by itself (I16): no backlog, health green. The time is the
KV server's. Each test runs again without its rule."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from kv_server import USER, KvServer, running
from pg_server import PgServer, running_server

import cenote
from cenote import limits
from cenote.agent import AgentState
from cenote.engine.flusher import Flusher
from cenote.engine.lease import Lease
from cenote.store import Store
from cenote.testing import TestServers
from witness import Tables, demand, reached, tables, toothed

WELL_MS = 10_000  # I16
pytestmark = pytest.mark.alone  # how soon all is well again is measured
BACKLOG = 1_000
# A machine that tests is slow, and no round trip to PostgreSQL is to be judged; lateness is told for half a window.
CALM = {"health__sql_ms_max": 1_000, "health__window_s": 4, "flush__drain_ms": 0}


@pytest.fixture(scope="module")
def pg() -> Iterator[PgServer]:
    """A PostgreSQL that may be stopped."""
    with running_server() as server:
        yield server


# --- the rules, taken out -----------------------------------------------------------------------------------


def the_next_shift(patch: pytest.MonkeyPatch) -> None:
    """A flusher whose shift has ended has done its work."""
    plain = Flusher._work

    async def work(self: Flusher) -> None:
        await plain(self)
        await asyncio.Event().wait()

    patch.setattr(Flusher, "_work", work)


def the_end_of_a_lease(patch: pytest.MonkeyPatch) -> None:
    """Who has the lease has it until he gives it back."""
    plain = Lease.acquire

    async def acquire(self: Lease, board: Any) -> bool:
        self._watched_since = time.monotonic()
        return await plain(self, board)

    patch.setattr(Lease, "acquire", acquire)
    patch.setattr(limits, "LEASE_EXPIRE_MS", 1 << 40)


# --- a server goes and comes back ---------------------------------------------------------------------------


@toothed(the_next_shift)
@pytest.mark.parametrize("fault", ["both", pytest.param("nats", marks=pytest.mark.judge)])
async def test_i16_all_is_well_after_a_server_was_away(fault: str, pg: PgServer, tmp_path: Path) -> None:
    """With a backlog that waits, and with writes that come all the time and are refused or delayed meanwhile."""
    await _well_after(fault, pg, tmp_path)


@pytest.mark.judge
async def test_i16_all_is_well_after_postgresql_was_away(pg: PgServer, tmp_path: Path) -> None:
    """The same shift may end what it began, before it notices that this is another start of PostgreSQL."""
    await _well_after("postgresql", pg, tmp_path)


async def _well_after(fault: str, pg: PgServer, tmp_path: Path) -> None:
    with running(tmp_path) as kv:
        async with cenote.open(**at(kv, pg)) as store:
            agent = store.agent("i16")
            allowed_ms = WELL_MS + await drain_ms(store)
            async with writing(agent) as acked:
                await reached(lambda: len(acked) > 20, "writes under way")
                if fault != "nats":
                    await asyncio.to_thread(pg.stop, signal.SIGINT)
                    await agent.put_many({f"late{number}": number for number in range(BACKLOG)})
                    await reached(lambda: store._machines.board.sql_down_since_ms, "the flusher misses PostgreSQL")
                if fault != "postgresql":
                    await asyncio.to_thread(kv.stop)
                    await reached(lambda: not store._core.link.connected, "the end of the connection")
                    await asyncio.to_thread(kv.start)
                if fault != "nats":
                    await asyncio.to_thread(pg.start)
                healed_ms = store._core.now_ms()
                before = len(acked)
                await reached(lambda: len(acked) > before + 20, "writes after the fault")
            await well(store, healed_ms + allowed_ms)
            async with tables_of(pg, store) as sql:
                for key, number in acked.items():
                    demand(await sql.value(agent, key) == str(number), f"I1: {key} is lost")


@pytest.mark.judge
@toothed(the_end_of_a_lease)
async def test_i16_all_is_well_though_the_flusher_is_frozen_and_when_it_thaws(cenote_servers: TestServers) -> None:
    """It stands still with the lease and a backlog; others heal that; then it wakes up, with what it had in hand."""
    settings = {name: str(one) if name == "data_dir" else one for name, one in cenote_servers.fresh(**CALM).items()}
    async with frozen_flusher(settings) as pid, cenote.open(**settings) as store:
        agent = store.agent("i16")
        async with tables(cenote_servers, store) as sql:
            allowed_ms = WELL_MS
            await agent.put("before", 1, durability="sql")
            os.kill(pid, signal.SIGSTOP)
            frozen_ms = store._core.now_ms()
            await agent.put_many({f"k{number}": number for number in range(BACKLOG)})
            # Nobody can know sooner that it is frozen than its lease and what it has in hand are over.
            await well(store, frozen_ms + limits.ACK_WAIT_S * 1_000 + allowed_ms)
            assert await sql.value(agent, f"k{BACKLOG - 1}") == str(BACKLOG - 1)
            os.kill(pid, signal.SIGCONT)
            thawed_ms = store._core.now_ms()
            await agent.put("after", 1)
            await well(store, thawed_ms + allowed_ms)
            assert await sql.value(agent, "after") == "1"


# --- what the tests look with -------------------------------------------------------------------------------


async def well(store: Store, until_ms: int) -> None:
    """I16: nothing waits and health is green, by this time of the server."""
    told: object = None
    began_ms = store._core.now_ms()
    while True:
        try:
            told = await store.health()
            if told.verdict is cenote.Verdict.HEALTHY and (await store.stats()).dirty_entries == 0:
                print(f"well after {store._core.now_ms() - began_ms} ms, {until_ms - store._core.now_ms()} ms in time")
                return
        except cenote.CenoteError as error:
            told = error
        demand(store._core.now_ms() < until_ms, f"I16: not well in time: {told}")
        await asyncio.sleep(0.05)


async def drain_ms(store: Store) -> int:
    """How long this machine takes for a backlog, at this moment."""
    await store.agent("i16").put("first", 0, durability="sql")
    began = time.monotonic()
    await store.agent("i16").put_many({f"early{number}": number for number in range(BACKLOG)})
    await store.flush(20)
    return int((time.monotonic() - began) * 1_000)


@asynccontextmanager
async def writing(agent: AgentState) -> AsyncIterator[dict[str, int]]:
    """Somebody writes all the time; what was acknowledged, by key."""
    acked: dict[str, int] = {}

    async def write() -> None:
        for number in range(1_000_000):
            try:
                await agent.put(f"w{number}", number)
                acked[f"w{number}"] = number
            except (cenote.UnavailableError, cenote.OutcomeUnknownError):
                pass  # refused, or nobody knows: not acknowledged
            await asyncio.sleep(0.01)

    task = asyncio.create_task(write())
    try:
        yield acked
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


FLUSHER = """
import asyncio, json, sys
import cenote

async def main():
    async with cenote.open(**json.loads(sys.argv[1])) as store:
        await store.agent("i16").put("of the flusher", 1, durability="sql")
        print("flushing", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


@asynccontextmanager
async def frozen_flusher(settings: dict[str, Any]) -> AsyncIterator[int]:
    """The pid of a process that has the lease."""
    pipe = subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FLUSHER, json.dumps(settings), stdin=pipe, stdout=pipe
    )
    try:
        assert child.stdout is not None
        assert await child.stdout.readline() == b"flushing\n"
        yield child.pid
    finally:
        child.kill()
        await child.wait()


def at(kv: KvServer, pg: PgServer) -> dict[str, Any]:
    """Arguments of `cenote.open()`: servers of our own."""
    return {
        "kv": kv.url, "kv__user": USER, "kv__password": kv.password, "sql": pg.url(), "sql__migrate": "auto",
        "namespace": f"l{kv.port}", **CALM,
    }  # fmt: skip


@asynccontextmanager
async def tables_of(pg: PgServer, store: Store) -> AsyncIterator[Tables]:
    """PostgreSQL's tables of an open store."""
    link = await asyncpg.connect(pg.url())
    try:
        yield Tables(link, store.config.names.schema("agents"))
    finally:
        await link.close()
