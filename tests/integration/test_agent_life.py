"""An agent's life: put aside and brought back, by many processes, without loss, and nobody who writes pays for it."""

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import cenote
from cenote import limits
from cenote.engine.barrier import Barrier
from cenote.engine.bed import Bed
from cenote.engine.core import Core
from cenote.errors import LifecycleError
from cenote.kv.consumer import ConsumerInfo
from cenote.kv.stream import StateStream
from cenote.lifecycle import Event, Phase
from cenote.sql.pool import Database
from cenote.testing import TestServers
from witness import another, at, demand, evict_all, in_kv, reached, tables, toothed

QUICK = {"flush__drain_ms": 0}


# --- the rules, taken out -----------------------------------------------------------------------------------


def that_it_is_flushed(patch: pytest.MonkeyPatch) -> None:
    """An agent leaves KV whether SQL has it or not."""
    consumer = Core.consumer

    async def all_is_settled(self: Core, name: str) -> ConsumerInfo | None:
        found = await consumer(self, name)
        return None if found is None else found._replace(floor=2**62)

    async def nothing(*_args: object) -> None:
        return None

    patch.setattr(Barrier, "agent", nothing)
    patch.setattr(Core, "consumer", all_is_settled)


def the_bound(patch: pytest.MonkeyPatch) -> None:
    """What was written after the floor was seen leaves as well."""
    plain = StateStream.purge_below

    async def purge_below(self: StateStream, _below: int, *, generation: int, subjects: str | None = None) -> int:
        return await plain(self, 2**62, generation=generation, subjects=subjects)

    patch.setattr(StateStream, "purge_below", purge_below)


def the_minimum_age(patch: pytest.MonkeyPatch) -> None:
    """What was just flushed leaves at once."""

    async def at_once(self: Bed, aged: object) -> None:
        return None

    patch.setattr(Bed, "_wait", at_once)


# --- the tests ----------------------------------------------------------------------------------------------


@pytest.mark.judge  # each sleep takes two seconds
@toothed(that_it_is_flushed)
async def test_what_sql_lacks_never_sleeps(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as other:
        agent = other.agent("a")
        await agent.put("old", 0)
        await store.flush(10)
        await other._core.probe_once()
        assert store._machines.flusher is not None
        await store._machines.flusher.stop()
        await agent.put("k", "acknowledged")
        with suppress(cenote.NotDurableError):
            await agent.sleep(3)
        async with another(store) as third:
            demand(await third.agent("a").get("k") == "acknowledged", "I1: sleep has lost an acknowledged write")
            assert (await third.agent("a").phase()) is Phase.ACTIVE


@pytest.mark.judge  # each sleep takes two seconds
@toothed(the_bound)
async def test_what_is_written_while_an_agent_falls_asleep_stays(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as other:
        agent = other.agent("a")
        await agent.put("k", "old")
        await agent.put("j", "old")

        async def write() -> None:
            assert store._machines.flusher is not None
            await store._machines.flusher.stop()  # nobody else could save it
            await agent.put("k", "new")

        with at(sleep_decided=write) as crossed:
            await agent.sleep(20)
        assert crossed["sleep.purged"] == 1
        async with another(store) as third:
            demand(await third.agent("a").get("k") == "new", "I1: sleep has lost a write that came meanwhile")
            assert await third.agent("a").get("j") == "old"
            assert await in_kv(other.agent("a"), "j") is not None  # hydrated by the read
            assert await third.agent("a").phase() is Phase.ACTIVE


@pytest.mark.judge  # each sleep takes two seconds
@toothed(the_minimum_age)
async def test_a_slow_hydration_over_a_sleep_hides_nothing(cenote_servers: TestServers) -> None:
    """Flow rule 7: a write comes, is flushed and put aside while a hydrator holds the row before."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as slow:
        agent = store.agent("a")
        await agent.put("k", "old")
        assert await evict_all(store) >= 1

        async def come_and_go() -> None:
            await agent.put("k", "new")
            assert (await agent.sleep(20)).entries == 1

        with at(hydrate_read=come_and_go):
            await slow.agent("a").get("k")
        async with another(store) as third:
            demand(await third.agent("a").get("k") == "new", "I10: a stale copy hides a write that was put aside")


@pytest.mark.judge  # each sleep takes two seconds
@pytest.mark.parametrize("delivered", [False, True], ids=["undelivered", "delivered"])
async def test_a_filtered_purge_leaves_the_durable_right(delivered: bool, cenote_servers: TestServers) -> None:
    """Flow rule 1's second half: what a purge with a filter does to what is above the floor, where sleep never purges.
    The rest is delivered, and SQL gets what the flusher had in its hands; but the floor stays behind, as after a delete
    of the tail, until the next entry comes: so `flush()` would hang."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, tables(cenote_servers, store) as sql:
        gone, stays, core = store.agent("gone"), store.agent("stays"), store._core
        await gone.put("first", 0)
        await store.flush(10)
        await reached(lambda: core.current_durable, "the durable")
        machines = store._machines

        async def purge() -> None:
            end = (await core.stream.info()).last_seq
            await core.stream.purge_below(
                end + 1, generation=core.link.generation, subjects=core.agent_filter(gone._agent)
            )

        async def write() -> None:
            for number in range(5):
                await gone.put(f"k{number}", number)
                await stays.put(f"k{number}", number)
            await gone.put("the tail", 0)

        if delivered:
            with at(flush_taken=purge) as crossed:
                await write()
                await reached(lambda: crossed.get("flush.committed"), "the commit of what was in hand")
            await stays.put("the next one", 0)
            await store.flush(10)
        else:
            assert machines.flusher is not None
            await machines.flusher.stop()
            await write()
            await purge()
            async with another(store, flush__enabled=True) as heir:
                await heir.flush(15)
                await heir.agent("gone").flush(10)
        for number in range(5):
            assert await sql.value(stays, f"k{number}") == str(number)
        durable = core.current_durable
        assert durable is not None
        info = await core.consumer(durable)
        if not delivered:
            await core.probe_once()
            info = await core.consumer(core.current_durable or "")
        assert info is not None
        assert info.pending + info.ack_pending == 0


async def test_an_agent_sleeps_and_comes_back_whole(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as other:
        agent, neighbour = store.agent("sleeper"), store.agent("neighbour")
        assert await agent.phase() is Phase.COLD
        was = {f"k{number}": number for number in range(50)}
        await agent.put_many(was)
        await agent.delete("k7")
        await neighbour.put("k", "stays")
        assert await other.agent("sleeper").phase() is Phase.ACTIVE
        assert await agent.sleep(30) == (51 - 1,)
        del was["k7"]
        assert await in_kv(agent, "k1") is None
        assert await in_kv(neighbour, "k") is not None
        assert await agent.phase() is await other.agent("sleeper").phase() is Phase.COLD
        # flush() and the floor are right after a filtered purge (rule 1), and the flusher goes on
        await store.flush(10)
        await agent.flush(10)
        await neighbour.put("k", "again")
        await store.flush(10)
        for opened in (store, other):
            mine = opened.agent("sleeper")
            assert await mine.get("k7") is None
            assert {key: value async for key, value in mine.items()} == was
        assert await agent.hydrate() == (len(was), sum(len(str(one)) for one in was.values()))
        assert await agent.phase() is Phase.ACTIVE
        events = [(one.event, one.phase) for one in await agent.lifecycle_events()]
        assert (Event.SLEPT, Phase.COLD) in events
        assert {(Event.FLUSH, Phase.FLUSHING), (Event.FLUSHED, Phase.ACTIVE)} <= set(events)
        assert (await agent.sleep(30)).entries >= len(was)


@pytest.mark.judge  # each sleep takes two seconds
async def test_two_at_cross_purposes_wait_or_are_told(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as other:
        agent, mine = store.agent("a"), other.agent("a")
        await agent.put("k", 1)

        async def meanwhile() -> None:
            assert await mine.phase() is Phase.FLUSHING
            with pytest.raises(LifecycleError) as refused:
                await mine.sleep(0.3)
            assert "legal now: slept, failed" not in str(refused.value)
            assert "sleep" in str(refused.value)
            assert "failed" in str(refused.value)
            assert (await mine.hydrate()).keys == 0  # hinders nobody, and is hindered by nobody

        with at(sleep_floor=meanwhile) as crossed:
            await agent.sleep(20)
        assert crossed["sleep.floor"] == 1
        assert await mine.phase() is Phase.COLD

        async def too_late() -> None:  # the lease ran out, and somebody else has put the agent aside
            await store._core.db.execute(
                f"UPDATE {store.config.names.schema('agents')}.lifecycle SET until = now() - interval '1 s'"
            )
            await mine.sleep(20)
            await agent.put("k", 3)

        await agent.put("k", 2)
        with at(sleep_flushed=too_late), pytest.raises(LifecycleError, match="taken this agent over"):
            await agent.sleep(20)
        assert await in_kv(agent, "k") is not None
        assert await agent.get("k") == 3


@pytest.mark.judge  # each sleep takes two seconds
async def test_put_and_the_flush_never_ask_for_the_phase(cenote_servers: TestServers) -> None:
    """Each statement of a put, of a read from KV and of a flush in the background is counted: none is about lives."""
    asked: list[str] = []
    plain = Database._run
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store:
        agent = store.agent("a")

        async def run(self: Database, method: Any, query: str, *rest: Any) -> Any:
            asked.append(query)
            return await plain(self, method, query, *rest)

        async def cost() -> int:
            before = sum("INSERT INTO" in one and ".state" in one for one in asked)
            for number in range(3):
                await agent.put("k", number)
                assert await agent.get("k") == number
            await store.flush(10)
            return sum("INSERT INTO" in one and ".state" in one for one in asked) - before

        await agent.put("k", 0)
        await store.flush(10)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Database, "_run", run)
            assert await cost() >= 1
            assert not [one for one in asked if "lifecycle" in one]
            await agent.sleep(20)  # a put to an agent that was put aside is an ordinary put
            asked.clear()
            assert await cost() >= 1
            assert not [one for one in asked if "lifecycle" in one]


async def test_hydration_tells_resumes_and_can_be_cancelled(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HYDRATE_PAGE_KEYS", 10)
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store:
        agent = store.agent("a")
        await agent.put_many({f"k{number:02}": number for number in range(35)})
        await evict_all(store)
        told: list[cenote.Progress] = []

        def stop_after_two(progress: cenote.Progress) -> None:
            told.append(progress)
            if len(told) == 2:
                task.cancel()

        task = asyncio.create_task(agent.hydrate(progress=stop_after_two))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [one.after for one in told] == ["k09", "k19"]
        assert await in_kv(agent, "k19") is not None
        assert await in_kv(agent, "k20") is None
        failed = (await agent.lifecycle_events())[0]
        assert (failed.event, failed.details["after"]) == (Event.FAILED, "k19")
        rest = await agent.hydrate(after=told[-1].after, progress=told.append)
        assert rest.keys == 15
        assert (told[2].after, told[-1].keys) == ("k29", 15)
        assert (await agent.hydrate()).keys == 0
        await evict_all(store)
        assert (await agent.prefetch("k1")).keys == 10
        assert (await agent.prefetch(keys=["k00", "k34", "none"])).keys == 2
        with pytest.raises(cenote.RejectedError):
            await agent.prefetch("k", keys=["k"])
        await evict_all(store)
        others = [f"agent{number}" for number in range(20)]
        await asyncio.gather(*(store.agent(name).put("k", name) for name in others))
        await evict_all(store)
        seen: list[str] = []
        came = await store.warm_up([*others, "a"], progress=lambda name, _: seen.append(name))
        assert sorted(seen) == sorted(came) == sorted([*others, "a"])
        assert came["a"].keys == 35
        assert await in_kv(store.agent("agent7"), "k") is not None


@pytest.mark.judge  # eviction by age takes its time
async def test_an_idle_agent_expires_and_is_woken(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK, state__ttl_s=2)) as store:
        agent = store.agent("idle")
        await agent.put("k", 1)
        await store.agent("busy").put("k", 1)  # the last entry of the stream never leaves

        async def is_(phase: Phase) -> bool:
            return await agent.phase() is phase

        await reached(lambda: is_(Phase.EXPIRED), "the expiry")
        assert await in_kv(agent, "k") is None
        assert await agent.get("k") == 1
        assert await agent.phase() is Phase.ACTIVE

        async def noted() -> bool:
            return any(one.event is Event.WAKE for one in await agent.lifecycle_events())

        await agent.put("k", 2)
        await reached(noted, "the note that it was woken")


@pytest.mark.judge
@pytest.mark.parametrize("place", ["sleep.flushed", "sleep.floor", "sleep.decided", "sleep.purged"])
async def test_who_is_killed_in_the_midst_of_sleep_is_followed(place: str, cenote_servers: TestServers) -> None:
    """kill -9 at each point: every value is readable at once, by others, and the next one finishes it."""
    settings = cenote_servers.fresh(**QUICK)
    async with cenote.open(**settings) as store, another(store) as other:
        agent = store.agent("a")
        was = {f"k{number}": number for number in range(10)}
        await agent.put_many(was)
        given = json.dumps(settings | {"flush__enabled": False}, default=str)
        child = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__).with_name("sleeper.py")), given,
            env=os.environ | {"CENOTE_CRASH_AT": place},
        )  # fmt: skip
        assert await child.wait() == -signal.SIGKILL
        left = await in_kv(other.agent("a"), "k3")
        assert (left is None) == (place == "sleep.purged")
        assert await agent.phase() is Phase.FLUSHING  # until its lease runs out
        demand({key: value async for key, value in other.agent("a").items()} == was, "I1: a killed sleep lost a value")
        assert (await agent.sleep(30)).entries in (0, 10)
        assert await agent.phase() is Phase.COLD
        demand(await other.agent("a").get("k3") == 3, "I1: a finished sleep lost a value")
