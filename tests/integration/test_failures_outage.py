"""A server that is away or frozen: S03, I8, I11, I15, and what callers are told. Each test runs again without its
rule."""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable
from typing import Any

import pytest

import cenote
from cenote.engine.cache import Cache
from cenote.engine.core import Core
from cenote.engine.evictor import Evictor
from cenote.engine.lineage import Lineage
from cenote.testing import FaultProxy, TestServers, frozen
from witness import another, demand, eventually, evict_all, in_kv, reached, tables, toothed

QUICK = {"flush__drain_ms": 0}
FROZEN = {"kv__deadline_ms": 3000, "kv__request_timeout_ms": 1000}


def port(servers: TestServers, name: str) -> int:
    """Where a server listens."""
    return int(servers.info[name]["address"].rpartition(":")[2])


# --- the rules, taken out -----------------------------------------------------------------------------------


def the_floor_under_eviction(patch: pytest.MonkeyPatch) -> None:
    """Age alone decides what leaves KV, as a bucket's own time to live would."""

    async def whoever(self: Lineage) -> None:
        return None

    patch.setattr(Evictor, "_aged", lambda self, floor: sys.maxsize)
    patch.setattr(Lineage, "demand", whoever)


def the_bound_of_the_backlog(patch: pytest.MonkeyPatch) -> None:
    """Writes are taken whatever waits for SQL."""
    patch.setattr(Core, "admit", lambda self, size=0, *, deleting: None)


def l1_without_servers(patch: pytest.MonkeyPatch) -> None:
    """Every read asks a server."""
    patch.setattr(Cache, "lookup", lambda self, subject: None)


# --- PostgreSQL ---------------------------------------------------------------------------------------------


@toothed(the_floor_under_eviction)
async def test_s03_i11_nothing_leaves_kv_while_postgresql_is_away(cenote_servers: TestServers) -> None:
    """Away for longer than the time to live: a TTL on the only copy would be a timer for the loss of it."""
    async with FaultProxy(port(cenote_servers, "postgres")) as proxy:
        settings = cenote_servers.by_url(sql_port=proxy.port, **QUICK, state__ttl_s=2)
        async with cenote.open(**settings) as store, tables(cenote_servers, store) as sql:
            agent = store.agent("s03")
            await agent.put("before", 0, durability="sql")
            proxy.cut()
            for number in range(20):
                await agent.put(f"k{number}", number)
            await agent.put("the last entry is never evicted", 1)
            until = time.monotonic() + 3.2
            while time.monotonic() < until:
                demand(await in_kv(agent, "k0") is not None, "I11: an unflushed entry was evicted")
                await asyncio.sleep(0.1)  # the outage has to last
            assert proxy.refused > 0, "nobody missed PostgreSQL"
            with pytest.raises(cenote.NotDurableError):
                await store.flush(0.1)
            with pytest.raises(cenote.NotDurableError):
                await (await agent.put("k0", 0)).durable(0.1)
            proxy.heal()
            await store.flush(20)
            for number in range(20):
                demand(await sql.value(agent, f"k{number}") == str(number), "I1: an acked write never reached SQL")

            async def evicted() -> bool:
                return await in_kv(agent, "k1") is None

            await reached(evicted, "an eviction: without one this proves nothing")
            demand(await agent.get("k1") == 1, "I1: a write was lost at its eviction")


@pytest.mark.parametrize("how", ["cut", pytest.param("held", marks=pytest.mark.judge)])
@pytest.mark.alone
async def test_postgresql_away_is_told_in_time_and_kv_goes_on(how: str, cenote_servers: TestServers) -> None:
    """Refused connections, and connections that stay open and answer nothing."""
    async with FaultProxy(port(cenote_servers, "postgres")) as proxy:
        settings = cenote_servers.by_url(sql_port=proxy.port, **QUICK, **FROZEN)
        async with cenote.open(**settings) as store:
            agent = store.agent("away")
            await agent.put("evicted", 1)
            assert await evict_all(store) >= 1
            await agent.put("k", 1)
            (proxy.cut if how == "cut" else proxy.hold)()
            receipt = await agent.put("k", 2)
            assert await agent.get("k") == 2
            assert await agent.update("k", lambda value: value + 1)
            await asyncio.gather(
                in_time(agent.get("evicted"), cenote.UnavailableError),
                in_time(agent.get_many(["k", "evicted"]), cenote.UnavailableError),
                in_time(agent.update("evicted", lambda value: value), cenote.UnavailableError),
                in_time(agent.put("evicted", 2, if_version=0), cenote.UnavailableError),
                in_time(agent.put("k2", 2, durability="sql"), cenote.NotDurableError),
                in_time(receipt.durable(1), cenote.NotDurableError),
                in_time(store.flush(1), cenote.NotDurableError),
            )
            assert (await store.health()).verdict is cenote.Verdict.UNHEALTHY
            proxy.heal()
            await store.flush(30)
            assert await agent.get("evicted") == 1
            assert (await receipt.durable(1)).durability == "sql"


@toothed(the_bound_of_the_backlog)
async def test_i15_a_full_backlog_refuses_writes_and_says_so(cenote_servers: TestServers) -> None:
    small = {"flush__backlog_count_max": 100, "flush__batch_count_max": 20, "flush__threshold_count": 10}
    async with FaultProxy(port(cenote_servers, "postgres")) as proxy:
        settings = cenote_servers.by_url(sql_port=proxy.port, **QUICK, **small)
        async with cenote.open(**settings) as store, tables(cenote_servers, store) as sql:
            agent = store.agent("i15")
            await agent.put("before", 0, durability="sql")
            proxy.cut()
            acked: list[int] = []
            refusals = 0

            async def refused() -> bool:
                """Refused twice, with a look at the backlog in between: then it is full, not only estimated to be."""
                nonlocal refusals
                try:
                    for _ in range(20):
                        await agent.put(f"k{len(acked)}", len(acked))
                        acked.append(len(acked))
                        refusals = 0
                except cenote.BackpressureError as error:
                    refusals += bool(error.retryable and error.hint)
                    await store._core.probe_once()
                return refusals >= 2

            await eventually(refused, "I15: the backlog has no bound")
            assert len(acked) >= 99
            assert proxy.refused > 0, "nobody missed PostgreSQL"
            assert await agent.get("k0") == 0, "reads go on"
            await agent.delete("deletes go on")
            with pytest.raises(cenote.BackpressureError):
                await agent.update("k0", lambda value: value + 1)
            with pytest.raises(cenote.PartialError) as partial:
                await agent.put_many({"many1": 1, "many2": 2})
            assert all(isinstance(error, cenote.BackpressureError) for error in partial.value.failed.values())
            proxy.heal()

            async def accepted() -> bool:
                try:
                    await agent.put("after", 1)
                except cenote.BackpressureError:
                    return False
                return True

            await eventually(accepted, "I16: writes are refused after PostgreSQL is back")
            await store.flush(20)
            for number in acked:
                demand(await sql.value(agent, f"k{number}") == str(number), "I1: an acked write was lost")
            stats = await store.stats()
            demand(stats.dirty_entries == 0, "I16: the backlog is not empty at rest")


WRITER = """
import asyncio, json, random, sys, time
import cenote

def resident_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

async def main():
    settings, seconds = json.loads(sys.argv[1]), float(sys.argv[2])
    async with cenote.open(**settings) as store:
        agent, written, most = store.agent("s03"), {}, 0
        await agent.put("before", 0, durability="sql")
        idle = resident_kib()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        until = time.monotonic() + seconds

        async def write(task):
            nonlocal most
            number = 0
            while time.monotonic() < until:
                key = f"{task}.{number % 400}"
                await agent.put(key, {"number": number, "text": "x" * 200})
                written[key] = number
                number += 1
                most = max(most, resident_kib()) if number % 50 == 0 else most

        await asyncio.gather(*(write(task) for task in range(16)))
        acked = store._core.counts.writes
        print(json.dumps({"idle": idle, "most": most, "written": written, "acked": acked}), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        begun = time.monotonic()
        while (stats := await store.stats()).dirty_entries:
            await asyncio.sleep(0.05)
        drained_s, after = time.monotonic() - begun, max(most, resident_kib())
        print(json.dumps({"drained_s": drained_s, "after": after, "lag": stats.lag_ms_p99}), flush=True)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.alone
@pytest.mark.judge
async def test_s03_i15_ten_seconds_without_postgresql_under_load(cenote_servers: TestServers) -> None:
    """PostgreSQL frozen, `state.ttl_s=2`, sixteen tasks writing 6,400 keys as fast as they can: nothing is lost, the
    writer stays small, the backlog drains by itself."""
    settings = cenote_servers.fresh(**QUICK, state__ttl_s=2)
    writer = await process(WRITER, settings, "10")
    assert await writer.line() == "ready"
    with frozen(cenote_servers.info["postgres"]["pid"]) as stopped:
        assert len(stopped) > 3, "PostgreSQL's backends were not frozen"
        await writer.say()
        first = await writer.json()
    await writer.say()
    then = await writer.json()
    assert await writer.end() == 0
    print({name: first[name] for name in ("idle", "most", "acked")}, then)
    assert first["acked"] > 10_000, "that was no load"
    demand(max(first["most"], then["after"]) - first["idle"] <= 64 * 1024, f"I15: the writer grew: {first['most']} KiB")
    async with cenote.open(**settings, flush__enabled=False) as store, tables(cenote_servers, store) as sql:
        agent = store.agent("s03")
        rows = await sql.link.fetch(f"SELECT key, (value->>'number')::int AS number FROM {sql.schema}.state")
        held = {row["key"]: row["number"] for row in rows}
        lost = [key for key, number in first["written"].items() if held.get(key) != number]
        demand(not lost, f"I1, I11: {len(lost)} of {len(first['written'])} keys lost: {lost[:3]}")
        assert (await agent.get("3.7"))["number"] == first["written"]["3.7"]


# --- NATS ---------------------------------------------------------------------------------------------------


@toothed(l1_without_servers)
@pytest.mark.alone
async def test_a_frozen_nats_is_told_in_time_and_l1_goes_on(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK, **FROZEN)) as store, another(store, **FROZEN) as fresh:
        agent = store.agent("frozen")
        receipt = await agent.put("k", "known")
        assert await agent.get("k") == "known"
        with frozen(cenote_servers.info["nats"]["pid"]):
            await asyncio.gather(
                in_time(agent.put("k2", "unknown"), cenote.OutcomeUnknownError),
                in_time(agent.delete("k3"), cenote.OutcomeUnknownError),
                in_time(agent.update("k2", lambda _: 1, default=0), cenote.UnavailableError),
                in_time(agent.get("elsewhere"), cenote.UnavailableError),
                in_time(agent.get_many(["elsewhere", "too"]), cenote.UnavailableError),
                in_time(fresh.agent("frozen").get("the first read of all"), cenote.UnavailableError),
                in_time(agent.put("k4", 1, if_version=0), cenote.UnavailableError),
                in_time(listing(agent), cenote.UnavailableError),
            )
            try:
                assert await agent.get("k") == "known"
                assert (await agent.entry("k")).version == receipt.version
            except cenote.UnavailableError as error:
                demand(False, f"I4: L1 does not go on: {error}")
            demand((await agent.entry("k")).stale, "I4: after three seconds of silence a copy is not marked stale")

        async def thawed() -> bool:
            try:
                return bool(await agent.get("k2", "absent") in ("unknown", "absent") and await agent.put("k5", 5))
            except cenote.CenoteError:
                return False

        await eventually(thawed, "I16: NATS is back and the store is not")
        await store.flush(20)
        assert await agent.get("k") == "known"
        assert not (await agent.entry("k")).stale


@pytest.mark.judge
async def test_i12_a_lost_answer_has_at_most_one_effect(cenote_servers: TestServers) -> None:
    """The publish arrives, its answer does not: the leader is asked, nothing is sent twice."""
    async with FaultProxy(port(cenote_servers, "nats")) as proxy:
        settings = cenote_servers.by_url(kv_port=proxy.port, **QUICK)
        async with cenote.open(**settings) as store:
            agent = store.agent("i12")
            await agent.put("counter", 0)
            for number in range(1, 4):
                proxy.lose_answer_to(f"lost{number}".encode())
                await agent.put("k", f"lost{number}")
                assert await agent.get("k") == f"lost{number}"
            before = (await store._core.stream.info()).last_seq
            proxy.lose_answer_to(b"of-the-update")
            await agent.update("counter", lambda value: [value, "of-the-update"])
            assert proxy.lost == 4, "no answer was lost"
            assert await agent.get("counter") == [0, "of-the-update"]
            demand((await store._core.stream.info()).last_seq <= before + 2, "I12: a write was sent twice")
            await store.flush(20)


async def test_i16_reset_connections_end_nothing(cenote_servers: TestServers) -> None:
    """Both connections are reset again and again under load: nothing acked is lost, all is well afterwards."""
    async with (
        FaultProxy(port(cenote_servers, "nats")) as nats,
        FaultProxy(port(cenote_servers, "postgres")) as postgres,
        cenote.open(**cenote_servers.by_url(kv_port=nats.port, sql_port=postgres.port, **QUICK)) as store,
        tables(cenote_servers, store) as sql,
    ):
        await sql.audit()
        agent, acked = store.agent("i16"), dict[str, int]()
        done = asyncio.Event()

        async def write(task: int) -> None:
            for number in range(400):
                key = f"{task}.{number % 7}"
                acked.pop(key, None)
                try:
                    await agent.put(key, number)
                    acked[key] = number
                except cenote.OutcomeUnknownError:
                    continue

        async def disturb() -> None:
            while not done.is_set():
                await asyncio.sleep(0.15)
                nats.reset()
                postgres.reset()

        disturbing = asyncio.create_task(disturb())
        await asyncio.gather(*(write(task) for task in range(8)))
        done.set()
        await disturbing
        assert nats.accepted >= 3, "NATS was not reset"
        assert postgres.accepted >= 3, "PostgreSQL was not reset"

        async def at_rest() -> bool:
            try:
                await store.flush(10)
            except (cenote.OutcomeUnknownError, cenote.UnavailableError):
                return False
            return True

        await eventually(at_rest, "I16: no rest after all faults are healed")
        assert len(acked) > 20
        for key, number in acked.items():
            demand(await agent.get(key) == number, f"I1: {key} is not {number}")
            demand(await sql.value(agent, key) == str(number), f"I1: {key} is not {number} in SQL")
        assert await sql.demand_monotonic() > 0


# --- within -------------------------------------------------------------------------------------------------


async def in_time(call: Awaitable[Any], error: type[Exception]) -> None:
    """It fails with this error, within the deadline and half a second."""
    begun = time.monotonic()
    with pytest.raises(error):
        await call
    took_s = time.monotonic() - begun
    demand(took_s <= 3.5, f"{error.__name__} took {took_s:.2f} s")


async def listing(agent: Any) -> list[str]:
    return [key async for key in agent.keys()]


class Child:
    """A process that is spoken to by lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def say(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        await self._process.stdin.drain()

    async def line(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    async def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self.line())
        return found

    async def end(self) -> int:
        return await self._process.wait()


async def process(script: str, settings: dict[str, Any], *arguments: str) -> Child:
    plain = json.dumps({name: str(one) if name == "data_dir" else one for name, one in settings.items()})
    pipe = asyncio.subprocess.PIPE
    return Child(
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, plain, *arguments, stdin=pipe, stdout=pipe, limit=1 << 24
        )
    )
