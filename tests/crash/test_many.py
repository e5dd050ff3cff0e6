"""Many processes on one store: I1, I11, I16; design 1, flow rules 17, 18. One flushes, the others cost
next to nothing."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import many
import pytest

import cenote
from cenote import limits
from cenote.engine import ear
from cenote.engine.ear import Ear
from cenote.engine.evictor import Evictor
from cenote.engine.lease import Lease
from cenote.kv import consumer
from cenote.store import Store
from cenote.testing import TestServers
from witness import Tables, demand, eventually, reached, tables, toothed

QUICK = {"flush__drain_ms": 0}
HAND_OVER_S = 2.0  # design 1
CONNECTIONS_MAX = 20
BATCH_ROWS_MIN = 40
IDLE_SHARE_MAX = 0.005
RATE = float(os.environ.get("MANY_RATE", "8"))  # design 1 says 20, which needs more than two processors
BIG = "x" * 16_000


# --- the rules, taken out -----------------------------------------------------------------------------------


def the_release(patch: pytest.MonkeyPatch) -> None:
    """Who leaves says nothing: the lease expires."""

    patch.setattr(Lease, "release", the_silence)


async def the_silence(self: Lease, *, leaving: bool = False) -> None: ...


def the_quick_redelivery(patch: pytest.MonkeyPatch) -> None:
    """The server's own ack_wait."""
    patch.setattr(consumer.limits, "ACK_WAIT_S", 30)


def the_pressure(patch: pytest.MonkeyPatch) -> None:
    """Entries wait for `state.ttl_s`, however full it is."""
    patch.setattr(Evictor, "_pressed", lambda self, share: False)


def the_look(patch: pytest.MonkeyPatch) -> None:
    """Who is no heir of the lease waits until it is told."""
    plain = Ear.away_s
    patch.setattr(Ear, "away_s", lambda self, silent_s: plain(self, silent_s) and 3_600)


# --- one hands over to another ------------------------------------------------------------------------------


@toothed(the_release)
@pytest.mark.alone
async def test_who_leaves_is_followed_at_once_and_who_waits_asks_no_postgresql(cenote_servers: TestServers) -> None:
    settings = cenote_servers.fresh(**QUICK)
    async with cenote.open(**settings) as first:
        await first.agent("a").put("k", 1, durability="sql")
        async with cenote.open(**settings) as second, cenote.open(**settings) as third:
            heirs = {one._core.writer_id: one for one in (second, third)}
            await asyncio.sleep(limits.LEASE_RENEW_MS / 1000)  # so that they have tried, and wait
            await second.agent("b").put("k", 1)
            assert await third.agent("b").get("k") == 1
            for one in heirs.values():
                demand(one._core.db._pool is None, "who only waits has connections to PostgreSQL")
            began, leaving = time.monotonic(), asyncio.create_task(first.aclose())
            while (holder := (await held_by(second))[0]) not in heirs:
                await asyncio.sleep(0.01)
            took_s = time.monotonic() - began
            await leaving
            demand(took_s < limits.LEASE_EXPIRE_MS / 2000, f"I16: a lease given back lay there for {took_s:.1f} s")
            await heirs[holder].agent("c").put("k", 1, durability="sql")
            idle = next(one for name, one in heirs.items() if name != holder)
            assert idle._core.db._pool is None


@toothed(the_look)
async def test_i16_where_all_heirs_have_fallen_with_the_holder_others_notice(cenote_servers: TestServers) -> None:
    """Nobody listens to renewals: those who would hear them are gone, too."""
    settings = cenote_servers.fresh(**QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ear, "_HEIR_S", 0.0)
        patch.setattr(ear, "_AWAY_S", 0.5)
        patch.setattr(Ear, "_called", lambda self, *message: None)
        patch.setattr(Lease, "release", the_silence)
        async with cenote.open(**settings) as first, cenote.open(**settings) as second:
            await reached(lambda: second._machines.lease._ear._all is None, "a process that waits and is no heir")
            name, _ = await held_by(first)
            assert first._machines.flusher is not None
            await first._machines.flusher.stop()

            async def followed() -> bool:
                return (await held_by(second))[0] != name

            await eventually(followed, "I16: nobody flushes")


@pytest.mark.judge
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
@pytest.mark.alone
async def test_a_flusher_that_falls_silent_is_followed_within_two_seconds(
    how: signal.Signals, cenote_servers: TestServers, tmp_path: Path
) -> None:
    settings = portable(cenote_servers.fresh(**QUICK))
    async with cenote.open(**settings, flush__enabled=False) as store, tables(cenote_servers, store) as sql:
        with running(settings, tmp_path, count=4, apart_s=0.3) as herd:
            await herd.opened()
            fallen: list[int] = []
            for number in range(3):
                fallen.append(await handed_over(store, how))
                await store.agent("after").put("k", number, durability="sql")
                assert await sql.value(store.agent("after"), "k") == str(number)
            for pid in fallen:
                if how is signal.SIGSTOP:
                    os.kill(pid, signal.SIGCONT)
            await store.agent("after").put("k", "thawed", durability="sql")


# --- one falls with entries in hand -------------------------------------------------------------------------


@pytest.mark.judge
@toothed(the_quick_redelivery)
async def test_i16_what_a_killed_flusher_had_in_hand_is_flushed_by_another(
    cenote_servers: TestServers, tmp_path: Path
) -> None:
    """500 entries delivered and not acknowledged: nobody sees them until the server offers them again."""
    settings = portable(cenote_servers.fresh(**QUICK))
    async with cenote.open(**settings) as first:  # it makes the durable, with what this process believes of it
        await first.agent("a").put("before", 1, durability="sql")
    async with cenote.open(**settings, flush__enabled=False) as store, tables(cenote_servers, store) as sql:
        agent = store.agent("in hand")
        await agent.put_many({f"k{number}": number for number in range(500)})
        with running(settings, tmp_path, count=1, freeze=True) as herd:
            await herd.opened()
            await reached(lambda: in_hand(store), "a flusher with 500 entries in hand")
            os.kill((await held_by(store))[1], signal.SIGKILL)
            began = time.monotonic()
            async with cenote.open(**settings):
                count = f"SELECT count(*) FROM {sql.schema}.state WHERE agent_id = $1"
                while await sql.link.fetchval(count, agent.id) < 500:
                    demand(time.monotonic() - began < 10, "I16: what a killed flusher had in hand waits for over 10 s")
                    await asyncio.sleep(0.05)
        print(f"flushed by another after {time.monotonic() - began:.1f} s")


@pytest.mark.judge
@toothed(the_pressure)
async def test_i11_a_frozen_flusher_does_not_pin_the_floor_for_ever(
    cenote_servers: TestServers, tmp_path: Path
) -> None:
    """It holds one entry; another takes over, gets that entry, and room is made; thawed, it harms nothing."""
    settings = portable(cenote_servers.fresh(**QUICK, kv__bytes_max=1 << 20))
    async with cenote.open(**settings, flush__enabled=False) as store, tables(cenote_servers, store) as sql:
        with running(settings, tmp_path, count=1, freeze=True) as herd:
            await herd.opened()
            await sql.audit()
            agent = store.agent("pin")
            await agent.put("held", 1)
            await reached(lambda: in_hand(store, 1), "a flusher with an entry in hand")
            frozen = (await held_by(store))[1]
            async with cenote.open(**settings) as heir:
                for number in range(130):

                    async def taken(number: int = number) -> bool:
                        try:
                            await agent.put(f"k{number}", f"{number} {BIG}")
                        except cenote.BackpressureError:
                            await asyncio.sleep(0.05)
                            return False
                        return True

                    await eventually(taken, "I16: one frozen flusher keeps all new keys out")
                os.kill(frozen, signal.SIGCONT)
                await heir.flush(20)
                for number in range(130):
                    demand(await agent.get(f"k{number}") == f"{number} {BIG}", "I11: a write was lost at its eviction")
                assert await agent.get("held") == 1
                assert heir._core.counts.evicted > 0
                assert await sql.demand_monotonic() >= 130


# --- two hundred --------------------------------------------------------------------------------------------


@pytest.mark.judge
@pytest.mark.skipif(sys.platform != "linux", reason="the cost of a process is read from /proc")
@pytest.mark.alone
async def test_two_hundred_processes_share_one_store(cenote_servers: TestServers, tmp_path: Path) -> None:
    """Idle for 20 s, then `MANY_RATE` writes a second each for 60 s; in their midst the flusher is killed.

    Two processors carry no 20: nats-py alone in 200 processes, flushing nothing, fills them at 13 each. Beyond what
    they carry the flusher, one process of 200, gets a two-hundredth of them, and whatever is measured is the scheduler.
    """
    settings = portable(cenote_servers.fresh())
    count, seconds, told = 200, 60, {}
    async with cenote.open(**settings, flush__enabled=False) as store, tables(cenote_servers, store) as sql:
        with running(settings, tmp_path, count=count, seconds=seconds, rate=RATE, apart_s=0.08) as herd:
            async with counted(sql) as connections:
                await herd.opened(180)  # they share two processors
                idle = await idle_shares(herd.pids(), (await held_by(store))[1])
                told["idle CPU"] = f"mean {sum(idle) / len(idle):.2%}, most {max(idle):.2%}"
                told["memory"] = f"{sum(map(resident, herd.pids())) / count / 2**20:.0f} MiB each"
                herd.go()
                await asyncio.sleep(seconds / 2)
                batches = [await batch_rows(store)]
                began = time.monotonic()
                dead = await handed_over(store, signal.SIGKILL)
                told["handed over in"] = f"{time.monotonic() - began:.2f} s"
                await asyncio.sleep(seconds / 2 - 3)
                batches.append(await batch_rows(store))
                await asyncio.to_thread(herd.process.wait, 120)
            async with cenote.open(**settings):
                await store.flush(60)
            acked = await lost_nothing(sql, store, tmp_path, count)
        told["batch"] = f"{[round(one) for one in batches]} rows"
        told["connections"] = f"at most {max(connections)} in {len(connections)} looks"
        told["acked"] = f"{acked}, {acked / seconds:.0f}/s"
    print(f"{count} processes, {dead} killed:", told)
    assert acked > count * seconds, "hardly anything was written"
    demand(max(connections) <= CONNECTIONS_MAX, f"I15: {max(connections)} connections to PostgreSQL")
    demand(sum(idle) / len(idle) <= IDLE_SHARE_MAX, f"idle processes cost {told['idle CPU']}")
    arriving = count * RATE * store.config.flush.interval_ms / 1000  # a flush waits no longer for more
    demand(min(batches) >= min(BATCH_ROWS_MIN, arriving), f"flushes are small: {told['batch']}")


# --- within -------------------------------------------------------------------------------------------------


class Herd:
    """Forked processes, and the one that forked them."""

    def __init__(self, process: subprocess.Popen[bytes], count: int) -> None:
        self.process = process
        self._count = count

    async def opened(self, within_s: float = 30) -> None:
        """Wait until all have opened the store."""
        assert self.process.stdout is not None
        async with asyncio.timeout(within_s):
            for _ in range(self._count):
                assert await asyncio.to_thread(self.process.stdout.readline) == b"open\n"

    def go(self) -> None:
        """Let them write."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def pids(self) -> list[int]:
        """Of those that live."""
        return [
            int(one) for one in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]


@contextmanager
def running(settings: dict[str, Any], directory: Path, **given: Any) -> Iterator[Herd]:
    """So many processes on a store, until the end of the block."""
    plain = {"seconds": 0, "rate": 1, "apart_s": 0.0}
    said = json.dumps(plain | {"settings": settings, "directory": str(directory)} | given)
    command = [sys.executable, many.__file__, said]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield Herd(process, given["count"])
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def portable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that JSON can carry."""
    return {name: str(one) if isinstance(one, Path) else one for name, one in settings.items()}


async def held_by(store: Store) -> tuple[str, int]:
    """Who flushes: its name and its pid."""
    board = await store._machines.lease.read()
    return ("", 0) if board is None else (board.holder, board.pid)


async def handed_over(store: Store, how: signal.Signals) -> int:
    """Send a signal to the flusher, and demand that another flushes within the promised time; the pid."""
    name, pid = await held_by(store)
    assert name
    os.kill(pid, how)
    began = time.monotonic()
    while (holder := (await held_by(store))[0]) in (name, ""):
        demand(time.monotonic() - began < 3 * HAND_OVER_S, "I16: nobody flushes")
        await asyncio.sleep(0.01)
    took_s = time.monotonic() - began
    print(f"{holder} follows {name} after {took_s:.2f} s")
    demand(took_s <= HAND_OVER_S, f"I16: nobody flushed for {took_s:.2f} s")
    return pid


async def in_hand(store: Store, at_least: int = 500) -> bool:
    """Whether so much is delivered and not acknowledged."""
    core = store._core
    await core.probe_once()
    found = None if core.durable_name is None else await core.consumer(core.durable_name)
    return found is not None and found.ack_pending >= at_least


async def batch_rows(store: Store) -> float:
    """Mean rows of a flush of the active flusher."""
    deadline_s = time.monotonic() + 30
    while (now := await store.stats()).commits == 0 and time.monotonic() < deadline_s:
        await asyncio.sleep(0.5)  # among 200 processes one may just have taken over, and has flushed nothing yet
    assert now.commits > 0
    return now.flushed / now.commits


@asynccontextmanager
async def counted(sql: Tables) -> AsyncIterator[list[int]]:
    """The connections that cenote has to this database, looked at twice a second."""
    looks: list[int] = []

    async def look() -> None:
        while True:
            query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'cenote%'"
            looks.append(await sql.link.fetchval(query))
            await asyncio.sleep(0.5)

    task = asyncio.create_task(look())
    try:
        yield looks
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def idle_shares(pids: list[int], flusher: int, seconds: float = 20) -> list[float]:
    """The share of a processor that each of them takes while nobody asks anything of it, but of the flusher."""
    before = {pid: used_s(pid) for pid in pids if pid != flusher}
    began = time.monotonic()
    await asyncio.sleep(seconds)
    passed_s = time.monotonic() - began
    return [(used_s(pid) - was) / passed_s for pid, was in before.items()]


def used_s(pid: int) -> float:
    """Seconds of a processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes of memory of a process, those that it shares included."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def lost_nothing(sql: Tables, store: Store, directory: Path, count: int) -> int:
    """I1: SQL has each key's last acknowledged write, or a later one; the number of acknowledged writes."""
    total = 0
    for number in range(count):
        acked = [int(line) for line in many.acked_by(str(directory), number).read_text().split()]
        total += len(acked)
        agent = store.agent(f"many-{number}")
        rows = await sql.link.fetch(f"SELECT value::text FROM {sql.schema}.state WHERE agent_id = $1", agent.id)
        held = {int(row["value"]) % many.KEYS: int(row["value"]) for row in rows}
        last = {one % many.KEYS: one for one in acked}
        lost = {key: one for key, one in last.items() if held.get(key, -1) < one}
        demand(not lost, f"I1: acked writes of agent {number} are lost: {lost} of {held}")
    return total
