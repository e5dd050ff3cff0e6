"""What one reader may see: I4, I5, S08, and the honest report of I8 (S10). Each test runs again without its rule."""

import asyncio
import dataclasses
import itertools
import json
import signal
import sys
from typing import Any

import pytest

import cenote
from cenote import limits
from cenote.engine import monitor
from cenote.engine.cache import Cache, Ticket
from cenote.engine.core import Core
from cenote.engine.machines import Machines
from cenote.model.entry import Stored
from cenote.testing import TestServers
from witness import another, at, demand, eventually, evict_all, reached, toothed

QUICK = {"flush__drain_ms": 0}

FLUSHER = """
import asyncio, json, sys
import cenote

async def main():
    async with cenote.open(**json.loads(sys.argv[1])) as store:
        await store.agent("first").put("k", 1, durability="sql")
        print("flushing", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


# --- the rules, taken out -----------------------------------------------------------------------------------


def the_own_write_in_l1(patch: pytest.MonkeyPatch) -> None:
    """A write leaves the copy in memory alone."""
    patch.setattr(Cache, "own_write", lambda self, subject, stored, ticket: None)
    patch.setattr(Cache, "own_event", lambda self, subject, sequence: None)


def the_push_into_l1(patch: pytest.MonkeyPatch) -> None:
    """A copy in memory lives for its whole time, whatever others write."""
    patch.setattr(Cache, "push", lambda self, subject, stored, ticket: None)


def the_ticket_of_a_fill(patch: pytest.MonkeyPatch) -> None:
    """What a read brought is believed, whatever came meanwhile."""

    def fill(self: Cache, subject: str, stored: Stored, ticket: Ticket) -> bool:
        self._install(subject, stored)
        return True

    patch.setattr(Cache, "fill", fill)


def kv_before_sql(patch: pytest.MonkeyPatch) -> None:
    """SQL is asked although KV may hold something newer."""

    async def nothing(self: Core, target: Any, timeout_ms: int | None = None) -> None:
        return None

    patch.setattr(Core, "message", nothing)


def the_start_of_the_backlog(patch: pytest.MonkeyPatch) -> None:
    """Lag is the age of the oldest entry that waits; a key that is written all the time is never old."""
    plain = monitor.stats

    async def by_entry(machines: Machines, *, sql: bool = True) -> monitor.Stats:
        now, core = await plain(machines, sql=sql), machines.core
        oldest_us = [message.time_us async for message in core.live(core.stream.prefix + ">")]
        return dataclasses.replace(now, oldest_dirty_ms=core.now_ms() - min(oldest_us) // 1000 if oldest_us else 0)

    patch.setattr(monitor, "stats", by_entry)


def the_bounds_of_l1(patch: pytest.MonkeyPatch) -> None:
    """Whatever is read stays in memory."""
    plain = Cache.__init__
    patch.setattr(Cache, "__init__", lambda self, *_: plain(self, 1 << 30, 1 << 40, 60))


# --- the tests ----------------------------------------------------------------------------------------------


@toothed(the_own_write_in_l1)
async def test_s08_i5_own_writes_are_read_at_once(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store:
        agent = store.agent("i5")
        await agent.put("k", -1)
        for number in range(300):
            assert await agent.get("k") is not None
            await agent.put("k", number)
            demand(await agent.get("k") == number, "I5: an own write was not read")
        await agent.delete("k")
        demand(await agent.get("k") is None, "I5: an own delete was not read")
        stats = await store.stats()
        assert stats.hits["memory"] > 300, f"L1 was not in use: {stats.hits}"


@pytest.mark.parametrize("memory", [0, 10_000], ids=["without L1", "with L1"])
async def test_i5_many_tasks_of_one_process(cenote_servers: TestServers, memory: int) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK, memory__entries_max=memory)) as store:
        agent = store.agent("i5")

        async def own(task: int) -> None:
            for number in range(60):
                await agent.put(f"k{task}", number)
                demand(await agent.get(f"k{task}") == number, "I5: an own write was not read")
                if number % 20 == 0:
                    await evict_all(store)
                    got = await agent.get(f"k{task}")
                    demand(got == number, f"I5: an own write was lost at its eviction: {got} for {number}")

        await asyncio.gather(*(own(task) for task in range(6)))
        stats = await store.stats()
        assert stats.hits["memory" if memory else "sql"] > 0


@toothed(the_push_into_l1)
async def test_i4_others_writes_reach_a_copy_in_memory(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as reader:
        await store.agent("i4").put("k", "old")
        assert await reader.agent("i4").get("k") == "old"
        assert (await reader.agent("i4").entry("k")).tier is cenote.Tier.MEMORY_CACHE
        await store.agent("i4").put("k", "new")

        async def arrived() -> bool:
            return bool(await reader.agent("i4").get("k") == "new")

        await eventually(arrived, "I4: another's write never reached the copy in memory")
        assert (await reader.agent("i4").entry("k")).tier is cenote.Tier.MEMORY_CACHE


@toothed(the_ticket_of_a_fill)
async def test_i4_a_fill_that_was_overtaken_is_not_admitted(cenote_servers: TestServers) -> None:
    """A read has its answer; a newer write is announced; then the read would fill L1 with what is old by now."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as reader:
        await store.agent("i4").put("k", "old")
        await reader.agent("i4").get("begins to listen")

        async def overtake() -> None:
            receipt = await store.agent("i4").put("k", "new")
            await reached(
                lambda: reader._core.coherence.seen >= receipt.version.revision, "the news of the newer write"
            )

        with at(read_answered=overtake) as crossed:
            assert await reader.agent("i4").get("k") in ("old", "new")
            demand(await reader.agent("i4").get("k") == "new", "I4: a fill that was overtaken stays in memory")
        assert crossed["read.answered"] >= 1


@toothed(kv_before_sql)
async def test_i4_one_reader_never_sees_an_older_value(cenote_servers: TestServers) -> None:
    """While others write, and entries leave for SQL and come back, and L1 is dropped again and again."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as reader:
        agent, mirror = store.agent("i4"), reader.agent("i4")
        await agent.put("k", 0)
        seen = [0]
        done = asyncio.Event()

        async def write() -> None:
            for number in range(1, 400):
                await agent.put("k", number)
                if number % 80 == 0:
                    await evict_all(store)
                    await reached(lambda wanted=number: seen[-1] == wanted, "the reader")
            done.set()

        async def read() -> None:
            while not done.is_set() or seen[-1] != 399:
                value = await mirror.get("k")
                demand(value is not None and value >= seen[-1], f"I4: {value} after {seen[-1]}")
                seen.append(value)
                if len(seen) % 3 == 0:
                    reader._core.cache.clear()
                await asyncio.sleep(0)

        async with asyncio.timeout(40):
            await asyncio.gather(write(), read())
        hits = (await reader.stats()).hits
        assert len(set(seen)) > 50, "the reader saw too little to be wrong about"
        assert hits["memory"] > 0, hits
        assert hits["kv"] > 0, hits
        assert hits["sql"] > 0, hits


@toothed(the_bounds_of_l1)
@pytest.mark.parametrize(
    "bound", [{"memory__entries_max": 100}, {"memory__bytes_max": 1 << 20}], ids=lambda b: next(iter(b))
)
async def test_i15_l1_keeps_its_bounds(cenote_servers: TestServers, bound: dict[str, int]) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK, **bound)) as store:
        agent = store.agent("i15")
        await agent.get("begins to listen")
        for start in range(0, 400, 100):
            await agent.put_many({f"k{number}": "x" * 5_000 for number in range(start, start + 100)})
        await asyncio.gather(*(agent.get(f"k{number}") for number in range(400)))
        cache = store._core.cache
        assert len(cache) > 20, "nothing was kept"
        demand(len(cache) <= store.config.memory.entries_max, f"I15: L1 holds {len(cache)} entries")
        demand(cache.bytes <= store.config.memory.bytes_max, f"I15: L1 holds {cache.bytes} bytes")
        demand(len(cache) < 400, "I15: L1 holds everything")
        assert await agent.get("k0") == "x" * 5_000


@toothed(the_start_of_the_backlog)
async def test_s10_i8_a_killed_flusher_shows_also_on_a_hot_key(cenote_servers: TestServers) -> None:
    """Flow rule 19: every key is overwritten all the time, so the oldest entry is always young."""
    settings = cenote_servers.fresh(**QUICK, flush__enabled=False)
    await flusher_that_leaves(settings, killed=True)
    await lag_rises(settings)


async def test_i8_a_flusher_that_left_shows_also_on_a_hot_key(cenote_servers: TestServers) -> None:
    settings = cenote_servers.fresh(**QUICK, flush__enabled=False)
    await flusher_that_leaves(settings, killed=False)
    await lag_rises(settings)


async def test_i8_a_flusher_that_never_was_shows_also_on_a_hot_key(cenote_servers: TestServers) -> None:
    await lag_rises(cenote_servers.fresh(**QUICK, flush__enabled=False))


async def lag_rises(settings: dict[str, Any]) -> None:
    """One key, overwritten all the time: the oldest entry is always young, the oldest unflushed *write* is not.
    Right after the flusher's end the report may still lean on its last word, for as long as its lease."""
    async with cenote.open(**settings) as store:
        agent = store.agent("i8")
        ages: list[int] = []
        began_ms = store._core.now_ms()
        while (since_ms := store._core.now_ms() - began_ms) < limits.LEASE_EXPIRE_MS + 800:
            for number in range(20):
                await agent.put("hot", number)
                await asyncio.sleep(0.01)  # the pace of the writes, nothing is waited for
            now = await store.stats()
            assert now.dirty_entries >= 1, "nothing waits: the fault did not hit"
            if since_ms > limits.LEASE_EXPIRE_MS:
                demand(now.oldest_dirty_ms >= since_ms, f"I8: lag is understated: {now.oldest_dirty_ms} of {since_ms}")
                ages.append(now.oldest_dirty_ms)
        assert len(ages) >= 2
        demand(all(older < newer for older, newer in itertools.pairwise(ages)), f"I8: lag does not rise: {ages}")
        demand((await store.health()).verdict is not cenote.Verdict.HEALTHY, "I8: healthy although nobody flushes")
        async with cenote.open(**(settings | {"flush__enabled": True})) as healer:
            await healer.flush(20)

            async def well() -> bool:
                now = await store.stats()
                return now.oldest_dirty_ms == 0 and now.dirty_entries == 0

            await eventually(well, "I16: the lag does not end with the backlog")


async def flusher_that_leaves(settings: dict[str, Any], *, killed: bool) -> None:
    """A process that flushes, and then is gone."""
    plain = {name: str(value) if name == "data_dir" else value for name, value in settings.items()}
    arguments = json.dumps(plain | {"flush__enabled": True})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FLUSHER, arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert await process.stdout.readline() == b"flushing\n"
    if killed:
        process.kill()
    process.stdin.close()
    assert await process.wait() == (-signal.SIGKILL if killed else 0)


async def test_i4_an_own_write_that_was_overtaken_is_not_installed(cenote_servers: TestServers) -> None:
    """Ack and the event of a foreign, newer write come in one go; no copy is held that could be replaced."""
    place = cenote_servers.fresh(**QUICK)
    async with cenote.open(**place) as one, cenote.open(**place) as two:
        mine, theirs = one.agent("i4"), two.agent("i4")
        await mine.get("warm")
        keys = [f"k{number}" for number in range(600)]
        for start in range(0, len(keys), 100):
            some = keys[start : start + 100]
            order = [(mine, "A"), (theirs, "B")] if start % 200 else [(theirs, "B"), (mine, "A")]
            await asyncio.gather(*(agent.put(key, value) for key in some for agent, value in order))
        truth = await two.agent("i4").get_many(keys)

        async def agrees() -> bool:
            return {key: await mine.get(key) for key in keys} == truth

        await eventually(agrees, "I4: L1 keeps a value that another process has overwritten")
        assert len(set(truth.values())) == 2, "each of the two won somewhere"
