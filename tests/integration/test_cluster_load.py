"""A cluster under load, long: reads through followers, leaders that die one after another, a server that comes back
with an old disk, a minority partition (flow rules 9 and 10)."""

import asyncio
import contextlib
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kv_cluster import Cluster, cluster

import cenote
from cenote.agent import AgentState
from cenote.store import Store
from cenote.testing import TestServers
from witness import demand, reached

pytestmark = [pytest.mark.judge, pytest.mark.alone]

ROUNDS = 20_000
KILLS = 5


def settings(servers: TestServers, kv: Cluster, namespace: str, *only: int, **overrides: Any) -> dict[str, Any]:
    """Arguments of `cenote.open()`: this cluster, the session's PostgreSQL."""
    return {
        **kv.settings(*only), "sql": servers.sql_dsn, "sql__migrate": "auto", "namespace": namespace,
        "flush__drain_ms": 0, **overrides,
    }  # fmt: skip


@contextlib.asynccontextmanager
async def load(agent: AgentState) -> AsyncIterator[Counter[str]]:
    """Writers beside the test; counts what they had acknowledged."""
    counts: Counter[str] = Counter()

    async def write(mine: int) -> None:
        while True:
            await agent.put(f"load{mine}.{counts['acked'] % 500}", "x" * 200)
            counts["acked"] += 1

    tasks = [asyncio.create_task(write(mine)) for mine in range(8)]
    try:
        yield counts
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_i4_i5_nothing_acknowledged_reads_as_absent_or_older(cenote_servers: TestServers, tmp_path: Path) -> None:
    """20,000 times: a write is acknowledged, read by its own process and by another one, both connected to followers,
    under load and without L1. A fresh key is absent for neither; its own process sees nothing older; the other one
    never goes back."""
    namespace = cenote_servers.fresh()["namespace"]
    off = {"memory__entries_max": 0}
    async with (
        cluster(tmp_path / "kv") as kv,
        cenote.open(**settings(cenote_servers, kv, namespace, 0)) as leading,
        cenote.open(**settings(cenote_servers, kv, namespace, 1, flush__enabled=False, **off)) as store,
        cenote.open(**settings(cenote_servers, kv, namespace, 2, flush__enabled=False, **off)) as other,
    ):
        await kv.lead(store._core.stream.name, 0)
        await reached(lambda: store._core.stream.ours and other._core.stream.ours, "both trust the stream")
        agent, same = store.agent("x"), other.agent("x")
        met: Counter[str] = Counter()
        seen: dict[int, int] = {}

        async def rounds(mine: int, count: int) -> None:
            for number in range(count):
                await agent.put(f"fresh{mine}.{number}", number)
                demand(await same.get(f"fresh{mine}.{number}") == number, "I5: an acked write reads as absent")
                await agent.put(f"hot{mine}", number)
                demand(await agent.get(f"hot{mine}") == number, "I5: an own write reads as an older one")
                value = await same.get(f"hot{mine}")
                demand(value >= seen.get(mine, 0), "I4: a read went back")
                seen[mine] = value
                met["behind"] += value < number
                met["rounds"] += 2

        async with load(leading.agent("load")) as counts:
            await asyncio.gather(*(rounds(mine, ROUNDS // 16) for mine in range(8)))
        assert met["rounds"] >= ROUNDS
        assert counts["acked"] > 1000
        print(f"{met['rounds']} reads beside {counts['acked']} writes; {met['behind']} of others' were behind")
        await leading.flush(60)


async def test_i1_i16_leaders_die_under_load(cenote_servers: TestServers, tmp_path: Path) -> None:
    """Five times the stream's leader is killed while eight writers write; it comes back each time. Nothing that was
    acknowledged is lost, everything drains, and another process reads all of it."""
    namespace = cenote_servers.fresh()["namespace"]
    acked: dict[str, int] = {}
    counts: Counter[str] = Counter()
    gaps: list[float] = []
    async with (
        cluster(tmp_path / "kv") as kv,
        cenote.open(**settings(cenote_servers, kv, namespace)) as store,
        cenote.open(**settings(cenote_servers, kv, namespace, state__ttl_s=5)) as other,
    ):
        agent = store.agent("x")

        async def write(mine: int) -> None:
            number = 0
            while True:
                number += 1
                key = f"{mine}.{number % 50}"
                try:
                    await agent.put(key, number)
                    acked[key] = number
                    counts["acked"] += 1
                except (cenote.OutcomeUnknownError, cenote.UnavailableError) as error:
                    counts[type(error).__name__] += 1
                await asyncio.sleep(0.002)

        writers = [asyncio.create_task(write(mine)) for mine in range(8)]
        for _ in range(KILLS):
            leader = await _leader(other)
            before, killed_at = counts["acked"], time.monotonic()
            kv.node(leader).kill()
            await reached(lambda before=before: counts["acked"] > before + 20, "the next leader", 40)
            gaps.append(round(time.monotonic() - killed_at, 1))
            await reached(lambda before=before: counts["acked"] > before + 200, "writes after a leader's death", 40)
            await asyncio.to_thread(kv.node(leader).start)
            await reached(lambda: _all_current(other), "three current servers", 40)
            counts["kills"] += 1
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        assert counts["kills"] == KILLS
        await _flushed(other)
        same = other.agent("x")
        for key, number in acked.items():
            value = await same.get(key)
            demand(value is not None and value >= number, f"I1: {key}={number} was acknowledged, and reads {value}")
        await reached(lambda: _drained(other), "I16: everything drains", 60)
        demand(store._core.epochs.newest == other._core.epochs.newest == 1, "an epoch began for nothing")
        print(dict(counts), "seconds without writes:", gaps)


async def test_i3_a_server_that_comes_back_with_an_old_disk(cenote_servers: TestServers, tmp_path: Path) -> None:
    """A follower's directory is an older copy of itself. The other two bring it up to date: no epoch begins, nothing
    that was acknowledged is missing, whichever server answers."""
    namespace = cenote_servers.fresh()["namespace"]
    async with (
        cluster(tmp_path / "kv") as kv,
        cenote.open(**settings(cenote_servers, kv, namespace, 0)) as store,
    ):
        await kv.lead(store._core.stream.name, 0)
        agent = store.agent("x")
        for number in range(100):
            await agent.put(f"key{number}", "early")
        kv.nodes[2].stop()
        shutil.copytree(kv.nodes[2].directory / "store", tmp_path / "older")
        await asyncio.to_thread(kv.nodes[2].start)
        for number in range(200):
            await agent.put(f"key{number}", "late")
        await reached(lambda: _all_current(store), "three current servers")
        kv.nodes[2].kill()
        shutil.rmtree(kv.nodes[2].directory / "store")
        (tmp_path / "older").rename(kv.nodes[2].directory / "store")
        await asyncio.to_thread(kv.nodes[2].start)
        epoch = store._core.epochs.newest
        off = {"memory__entries_max": 0, "flush__enabled": False}
        async with cenote.open(**settings(cenote_servers, kv, namespace, 2, **off)) as other:
            same = other.agent("x")
            for number in range(200):
                await agent.put(f"more{number}", number)
                demand(await same.get(f"more{number}") == number, "I1: an acked write is gone")
            await reached(lambda: _all_current(store), "three current servers", 40)
            for number in range(200):
                demand(await same.get(f"key{number}") == "late", "I1: an acked write is gone")
            await _flushed(store)
            await other._core.probe_once()
            demand(store._core.epochs.newest == other._core.epochs.newest == epoch, "an epoch began for nothing")


@pytest.mark.parametrize("leading", [False, True], ids=["a follower", "the leader"])
async def test_i4_a_minority_says_that_it_is_old(leading: bool, cenote_servers: TestServers, tmp_path: Path) -> None:
    """A process is on the wrong side of a partition. Its connection is healthy, its server goes on answering, even as
    the leader that it was. After some seconds what L1 holds is marked as stale and everything else is refused; after
    the partition it reads what was written meanwhile."""
    namespace = cenote_servers.fresh()["namespace"]
    hasty = {"kv__deadline_ms": 2000, "kv__request_timeout_ms": 1000, "flush__enabled": False}
    async with (
        cluster(tmp_path / "kv", gated=True) as kv,
        cenote.open(**settings(cenote_servers, kv, namespace, 0)) as store,
        cenote.open(**settings(cenote_servers, kv, namespace, 2, **hasty)) as other,
    ):
        agent, same = store.agent("x"), other.agent("x")
        await kv.lead(store._core.stream.name, 2 if leading else 0)
        await agent.put("held", "old")
        await agent.put("asked", "old")
        assert await same.get("held") == "old"
        await reached(lambda: _all_current(store), "three current servers")
        for gate in kv.gates:
            gate.hold()
        async with asyncio.timeout(60):
            while True:
                try:
                    await agent.put("held", "new")
                    await agent.put("asked", "new")
                    break
                except (cenote.OutcomeUnknownError, cenote.UnavailableError):
                    pass
        await reached(lambda: not other._core.coherence, "the silence is noticed", 15)
        assert other._core.link.connected
        demand((await same.entry("held")).stale, "I4: an old copy is not marked")
        with pytest.raises(cenote.UnavailableError):
            demand(await same.get("asked") == "new", "I4: a minority's old value is shown")
        for gate in kv.gates:
            gate.heal()
        await reached(lambda: bool(other._core.coherence), "the leader is heard again", 40)
        await reached(lambda: _reads(same, "held", "new"), "the new value", 10)
        demand(await same.get("asked") == "new", "I4: an old value after the partition")


async def _reads(agent: AgentState, key: str, value: str) -> bool:
    return await agent.get(key) == value


async def _leader(store: Store) -> str:
    while True:
        with contextlib.suppress(cenote.CenoteError):
            info = await store._core.stream.info()
            if info.leader:
                return info.leader
        await asyncio.sleep(0.1)


async def _all_current(store: Store) -> bool:
    try:
        answer = await store._core.link.api(f"STREAM.INFO.{store._core.stream.name}", None, 1000)
    except cenote.CenoteError:
        return False
    replicas = answer["cluster"].get("replicas") or []
    return len(replicas) == 2 and all(one["current"] and not one.get("offline") for one in replicas)


async def _flushed(store: Store) -> None:
    async with asyncio.timeout(90):
        while True:
            try:
                return await store.flush(60)
            except (cenote.OutcomeUnknownError, cenote.UnavailableError):
                await asyncio.sleep(0.2)


async def _drained(store: Store) -> bool:
    return (await store.stats()).dirty_entries == 0
