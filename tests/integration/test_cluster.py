"""cenote on a cluster of three nats-servers with replicated buckets: a follower that lags, a leader that dies
(flow rules 9 and 10)."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kv_cluster import Cluster, cluster

import cenote
from cenote.engine.replicas import Replicas
from cenote.store import Store
from cenote.testing import TestServers
from witness import Violation, demand, evict_all, in_kv

STREAM_PAUSE_S = 0.2
TRIES = 5
"""Which server answers is left to chance, and one that lags for long may be brought up to date."""


def settings(servers: TestServers, kv: Cluster, *only: int, first: int = 0, **overrides: Any) -> dict[str, Any]:
    """Arguments of `cenote.open()`: this cluster, the session's PostgreSQL."""
    return {
        **kv.settings(*only, first=first), "sql": servers.sql_dsn, "sql__migrate": "auto", "flush__drain_ms": 0,
        **overrides,
    }  # fmt: skip


async def lagging(kv: Cluster, store: Store) -> None:
    """Hold the replication to the third server once it has begun to answer reads; it does so, and knows nothing new."""
    stream, agent = store._core.stream, store.agent("lag")
    async with asyncio.timeout(40):
        for attempt in range(1000):
            for gate in kv.gates:
                gate.hold_replication()
            target = agent._target(f"probe{attempt}")
            await agent.put(target.key, "new")
            answers = [await stream.get(target.wire) for _ in range(40)]
            if None in answers and not all(answer is None for answer in answers):
                assert sum(gate.held for gate in kv.gates)
                return
            heal(kv)
            await asyncio.sleep(STREAM_PAUSE_S)


def heal(kv: Cluster) -> None:
    for gate in kv.gates:
        gate.heal()


async def violation(store: Store, removal: Callable[[pytest.MonkeyPatch], None], name: str) -> Violation | None:
    """What is seen to break without a part of the rule; None: whoever answered happened to know."""
    with pytest.MonkeyPatch.context() as patch:
        removal(patch)
        try:
            await written_and_read(store, name)
        except Violation as seen:
            return seen
    return None


async def acked(agent: cenote.AgentState, key: str, value: Any) -> cenote.Receipt:
    """Write until a write is acknowledged; whether one with a lost answer happened does not matter here."""
    while True:
        try:
            return await agent.put(key, value)
        except cenote.OutcomeUnknownError:
            pass


def any_follower_is_believed(patch: pytest.MonkeyPatch) -> None:
    """A follower's "absent" or older entry is taken for the truth."""
    patch.setattr(Replicas, "_believed", lambda self, subject, message: True)


def what_was_met_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Only "absent" is asked again."""
    patch.setattr(Replicas, "_believed", lambda self, subject, message: message is not None)


def a_listing_ends_with_any_follower(patch: pytest.MonkeyPatch) -> None:
    """Pages of direct gets are taken for the whole."""
    patch.setattr(Replicas, "live", lambda self, subject, first: self._stream.live(subject, first))


async def written_and_read(store: Store, name: str) -> None:
    """What this process wrote is there, and is the newest, whichever server answers."""
    agent = store.agent(name)
    for number in range(25):
        await agent.put(f"key{number}", number)
        demand(await agent.get(f"key{number}") == number, "I5: a fresh key reads as absent")
        await agent.put("same", number)
        demand(await agent.get("same") == number, "I5: an own write reads as an older one")
    found = await agent.get_many([f"key{number}" for number in range(25)])
    demand(len(found) == 25, "I5: get_many lacks an own write")
    for _ in range(40):  # each is answered by any of three servers
        demand(len([key async for key in agent.keys()]) == 26, "I5: a listing is short")


async def test_i5_a_lagging_follower_hides_no_write(cenote_servers: TestServers, tmp_path: Path) -> None:
    """A process is connected to a follower that lags: with the rule nothing is missing, without each part something
    is. Nobody flushes, so SQL cannot help; L1 is off."""
    namespace = cenote_servers.fresh()["namespace"]
    async with cluster(tmp_path / "kv", gated=True) as kv:
        common = settings(cenote_servers, kv, 2, namespace=namespace, flush__enabled=False, memory__entries_max=0)
        async with cenote.open(**common) as store:
            assert await store.agent("lag").get("nothing") is None  # KV is empty, so there is nothing to compare
            await kv.lead(store._core.stream.name, 0)
            for name in ("whole", "without0", "without1", "without2"):
                await store.agent(name).put("same", "old")
            await lagging(kv, store)
            await written_and_read(store, "whole")
            removals: tuple[Callable[[pytest.MonkeyPatch], None], ...] = (
                any_follower_is_believed, what_was_met_is_forgotten, a_listing_ends_with_any_follower,
            )  # fmt: skip
            for number, removal in enumerate(removals):
                found: list[Violation | None] = [await violation(store, removal, f"without{number}")]
                while found[-1] is None and len(found) < TRIES:
                    again = f"without{number} again {len(found)}"
                    heal(kv)
                    await store.agent(again).put("same", "old")
                    await lagging(kv, store)
                    found.append(await violation(store, removal, again))
                print("seen:", found)
                assert isinstance(found[-1], Violation), removal.__doc__
            heal(kv)


@pytest.mark.judge
async def test_i1_a_leaders_death_loses_nothing(cenote_servers: TestServers, tmp_path: Path) -> None:
    """Opened while the cluster elects; then the leader of the stream is killed. What is acknowledged then, and before,
    is read by another process, flushed, evicted, and read again; both agree on what flushes belong to."""
    namespace = cenote_servers.fresh()["namespace"]
    async with (
        cluster(tmp_path / "kv") as kv,
        cenote.open(**settings(cenote_servers, kv, namespace=namespace)) as store,
        cenote.open(**settings(cenote_servers, kv, first=1, namespace=namespace, flush__enabled=False)) as other,
    ):
        agent, same = store.agent("heir"), other.agent("heir")
        for number in range(20):
            await agent.put(f"before{number}", number)
        await store.flush(20)
        info = await store._core.stream.info()
        assert info.leader is not None
        first_term = store._core.incarnation
        assert store._core.link.server_id != other._core.link.server_id
        demand(first_term == other._core.incarnation, "F-inc: two processes disagree on the server's start")
        killed_at = time.monotonic()
        kv.node(info.leader).kill()
        receipt = await acked(agent, "during", "acked")
        took_s = time.monotonic() - killed_at
        demand(await same.get("during") == "acked", "I1: an acked write is gone with the leader")
        for number in range(20):
            demand(await same.get(f"before{number}") == number, "I1: an acked write is gone with the leader")
        assert receipt.version > (await agent.entry("before19")).version
        async with asyncio.timeout(30):
            while True:
                await acked(agent, "after", "acked")
                try:
                    await store.flush(20)
                    break
                except cenote.OutcomeUnknownError:
                    pass  # the connection was replaced meanwhile
            while store._core.incarnation in ("", first_term) or other._core.incarnation != store._core.incarnation:
                await asyncio.sleep(0.05)
        assert await evict_all(other) > 20
        demand(await in_kv(same, "during") is None, "the entry was not evicted")
        demand(await same.get("during") == "acked", "I1: an evicted write is gone")
        print(f"the first write took {took_s:.1f} s")
