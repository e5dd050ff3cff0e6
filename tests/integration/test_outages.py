"""Servers that are away for longer than `outage_after_ms`: whatever needs them is refused at once, with what to do,
whatever does not goes on, and all is well again by itself. Deadlines are a minute here, so who waits is seen."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kv_server import USER, running
from pg_server import PgServer
from pg_server import pg as pg  # a fixture

import cenote
from cenote.store import Store
from cenote.testing import FaultProxy, TestServers, frozen
from witness import demand, evict_all, reached

AT_ONCE_S = 10
"""Far less than the deadline of a call, far more than a busy machine needs for one."""
PATIENT: dict[str, Any] = {
    "kv__deadline_ms": 60_000, "retry__deadline_ms": 60_000, "kv__outage_after_ms": 500, "sql__outage_after_ms": 500,
    "kv__request_timeout_ms": 1_000, "flush__drain_ms": 0,
}  # fmt: skip


class Away(NamedTuple):
    """An open store, and what stands before its servers."""

    store: Store
    kv: FaultProxy
    sql: FaultProxy


def port(servers: TestServers, name: str) -> int:
    """Where a server listens."""
    return int(servers.info[name]["address"].rpartition(":")[2])


@asynccontextmanager
async def proxied(servers: TestServers, **changes: Any) -> AsyncIterator[Away]:
    """A store whose agent "a" has `warm` in memory and KV, and `cold` in PostgreSQL alone."""
    async with FaultProxy(port(servers, "nats")) as kv, FaultProxy(port(servers, "postgres")) as sql:
        settings = servers.by_url(kv_port=kv.port, sql_port=sql.port, **(PATIENT | changes))
        async with cenote.open(**settings) as store:
            agent = store.agent("a")
            await agent.put("cold", {"of": "cold"})
            await agent.put("the last entry is never evicted", 1)
            await store.flush(20)
            assert await evict_all(store) >= 1
            await agent.put("warm", {"of": "warm"}, durability="sql")
            assert await agent.get("warm") == {"of": "warm"}
            yield Away(store, kv, sql)


async def out(store: Store, *, kv: bool = False, sql: bool = False) -> None:
    """Until they count as out; somebody has to ask."""
    async with asyncio.timeout(30):
        while (kv and not store._core.link.out) or (sql and not store._core.db.out):
            await store.health()
            await asyncio.sleep(0.1)


async def refused(work: Awaitable[Any], words: str) -> None:
    """At once, with a typed error that says which server and what to do."""
    async with asyncio.timeout(AT_ONCE_S):
        with pytest.raises(cenote.UnavailableError, match=words) as seen:
            await work
    assert seen.value.retryable
    assert seen.value.lasting
    assert "cenote doctor" in (seen.value.hint or "")


async def listed(source: Any) -> list[Any]:
    return [one async for one in source]


def needs_kv(store: Store) -> list[Callable[[], Awaitable[Any]]]:
    agent = store.agent("a")
    return [
        lambda: agent.put("k", 1), lambda: agent.put("k", 1, if_version=0), lambda: agent.delete("warm"),
        lambda: agent.update("cold", lambda value: value), lambda: agent.put("k", 1, durability="sql"),
        lambda: agent.get("cold"), lambda: agent.entry("cold"), lambda: agent.get_many(["cold", "warm"]),
        lambda: listed(agent.keys()), lambda: listed(agent.items()), lambda: store.stats(),
        lambda: agent.put("counter", cenote.PNCounter()), lambda: agent.hydrate(),
        lambda: store.sessions.find("s"),
    ]  # fmt: skip


HOW = pytest.mark.parametrize("how", ["cut", pytest.param("hold", marks=pytest.mark.judge)])


@HOW
async def test_without_nats(how: str, cenote_servers: TestServers) -> None:
    """Reset and refused, or frozen: then it takes a while until it counts as out."""
    async with proxied(cenote_servers) as away:
        store, agent = away.store, away.store.agent("a")
        getattr(away.kv, how)()
        await out(store, kv=True)
        for verb in needs_kv(store):
            await refused(verb(), "NATS has not answered for")
        async with asyncio.timeout(AT_ONCE_S):
            task = await store.tasks.add("t")
            assert (await store.tasks.get(task.id)).id == task.id
            await store.messages.send({"n": 1}, sender="a", to="b")
            assert [one.body for one in (await store.messages.read(to="b")).items] == [{"n": 1}]
            assert await store.transact(lambda tx: tx.fetchval("SELECT 1")) == 1
        assert await agent.get("warm") == {"of": "warm"}
        assert (await agent.entry("warm")).tier is cenote.Tier.MEMORY_CACHE
        health = await store.health()
        assert health.verdict.value == "unhealthy"
        assert not (await store.ready()).ready
        away.kv.heal()
        await reached(lambda: works(store), "a store that works again")
        assert await agent.get("cold") == {"of": "cold"}
        await store.flush(20)


async def works(store: Store) -> bool:
    try:
        await store.agent("a").put("again", 1)
    except cenote.CenoteError:
        return False
    return True


async def test_reads_without_nats_where_they_are_wanted(cenote_servers: TestServers) -> None:
    async with proxied(cenote_servers, kv__reads_when_down="sql") as away:
        agent = away.store.agent("a")
        away.kv.cut()
        await out(away.store, kv=True)
        async with asyncio.timeout(AT_ONCE_S):
            cold, warm = await agent.entry("cold"), await agent.entry("warm")
            assert (cold.value, cold.tier, cold.stale) == ({"of": "cold"}, cenote.Tier.RELATIONAL_DB, True)
            assert warm.value == {"of": "warm"}
            assert await agent.get_many(["cold", "nothing"]) == {"cold": {"of": "cold"}}
            assert await agent.get("nothing") is None
        await refused(agent.put("k", 1), "NATS has not answered for")
        await refused(listed(agent.keys()), "NATS has not answered for")
        away.sql.cut()
        await out(away.store, sql=True)
        await refused(agent.get("cold"), "has not answered for")
        away.kv.heal(), away.sql.heal()
        await reached(lambda: works(away.store), "a store that works again")
        await agent.put("cold", "newer")
        assert await agent.get("cold") == "newer"
        assert not (await agent.entry("cold")).stale


@HOW
async def test_without_postgresql(how: str, cenote_servers: TestServers) -> None:
    """Frozen, an answer takes up to the driver's own timeout: only who comes later is refused at once."""
    async with proxied(cenote_servers) as away:
        store, agent = away.store, away.store.agent("a")
        getattr(away.sql, how)()
        receipt = await agent.put("k", 1)
        await out(store, sql=True)
        for verb in (
            lambda: agent.get("cold"), lambda: agent.update("cold", lambda value: value), lambda: agent.checkpoint(),
            lambda: store.messages.send({}, sender="a", to="b"), lambda: store.tasks.add("t"), lambda: store.repairs(),
        ):  # fmt: skip
            await refused(verb(), "PostgreSQL has not answered for")
        async with asyncio.timeout(AT_ONCE_S):
            assert await agent.get("k") == 1
            await agent.update("k", lambda value: value + 1)
            await agent.delete("warm")
            assert (await store.ready()).ready
        away.sql.heal()
        await receipt.durable(30)
        await store.flush(30)
        assert await agent.get("cold") == {"of": "cold"}


async def test_without_either(cenote_servers: TestServers) -> None:
    async with proxied(cenote_servers) as away:
        store = away.store
        away.kv.cut(), away.sql.cut()
        await out(store, kv=True, sql=True)
        for verb in [*needs_kv(store), lambda: store.tasks.add("t"), lambda: store.repairs()]:
            await refused(verb(), "has not answered for")
        assert await store.agent("a").get("warm") == {"of": "warm"}
        assert (await store.health()).verdict.value == "unhealthy"
        away.kv.heal(), away.sql.heal()
        await reached(lambda: works(store), "a store that works again")
        await store.flush(30)


@pytest.mark.judge
@pytest.mark.parametrize("how", ["killed", "frozen"])
@pytest.mark.parametrize("who", ["nats", "postgresql", "both"])
async def test_real_servers_killed_and_frozen(who: str, how: str, pg: PgServer, tmp_path: Path) -> None:
    """kill -9 and SIGSTOP under writers: what is acknowledged is there afterwards, all others are told within a bound
    that shrinks to nothing, and nobody has to do anything for it to go on."""
    with running(tmp_path) as kv:
        settings = {
            "kv": kv.url, "kv__user": USER, "kv__password": kv.password, "sql": pg.url(), "sql__migrate": "auto",
            "namespace": f"o{kv.port}", **PATIENT,
        }  # fmt: skip
        async with cenote.open(**settings) as store:
            agent, acked, at_once = store.agent("a"), dict[str, int](), list[bool]()

            async def write(name: str) -> None:
                for number in range(10_000):
                    try:
                        await agent.put(f"{name}-{number}", number)
                        acked[f"{name}-{number}"] = number
                    except cenote.UnavailableError as error:
                        at_once.append(error.lasting)
                        await asyncio.sleep(0.05)
                    except cenote.OutcomeUnknownError:
                        pass
                    await asyncio.sleep(0.002)
                    if done.is_set():
                        break

            done = asyncio.Event()
            writers = [asyncio.create_task(write(name)) for name in "wxyz"]
            await reached(lambda: len(acked) > 100, "some acknowledged writes")
            nats, sql = who != "postgresql", who != "nats"
            stopped = contextlib.ExitStack()
            if nats and how == "killed":
                kv.kill()
            elif nats:
                stopped.enter_context(frozen(kv.pid))
            if sql and how == "killed":
                pg.stop(signal.SIGQUIT)
            elif sql:
                assert pg.process is not None
                stopped.enter_context(frozen(pg.process.pid))
            await out(store, kv=nats, sql=sql)
            if nats:
                await refused(agent.put("k", 1), "NATS has not answered for")
                await reached(lambda: any(at_once), "a writer that is refused at once")
            else:
                await agent.put("k", 1)
                await refused(store.repairs(), "PostgreSQL has not answered for")
            stopped.close()
            if how == "killed":
                if nats:
                    kv.start()
                if sql:
                    pg.start()
            await reached(lambda: works(store), "a store that works again")
            done.set()
            await asyncio.gather(*writers)
            assert nats or not at_once
            await store.flush(60)
        async with cenote.open(**settings) as other:
            found = {key: value async for key, value in other.agent("a").items()}
        lost = {key for key, number in acked.items() if found.get(key) != number}
        demand(not lost, f"I1: {len(lost)} of {len(acked)} acknowledged writes are gone")
