"""Answers made once for everybody: single flight in and between processes, old ones when none can be made, and no copy
that outlives its time."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import cenote
from cenote.testing import FaultProxy, TestServers
from witness import another, reached

ASKER = Path(__file__).parent / "asker.py"


class Loader:
    """Counts its calls; fails while `error` is set."""

    def __init__(self, value: object, seconds: float = 0.0) -> None:
        self.calls = 0
        self.value, self.seconds = value, seconds
        self.error: Exception | None = None

    async def __call__(self) -> object:
        self.calls += 1
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return self.value


@contextlib.contextmanager
def askers(settings: dict[str, Any], count: int, *args: object) -> Iterator[list[subprocess.Popen[str]]]:
    given = json.dumps({name: str(value) if isinstance(value, Path) else value for name, value in settings.items()})
    command = [sys.executable, str(ASKER), given, *map(str, args)]
    found = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    for process in found:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    try:
        yield found
    finally:
        for process in found:
            process.kill()
            process.communicate()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    heard: dict[str, Any] = json.loads(process.stdout.readline())
    return heard


@pytest.mark.judge
async def test_two_hundred_misses_in_four_processes_are_one_load(cenote_servers: TestServers) -> None:
    with askers(cenote_servers.fresh(), 4, 50, 0.5) as processes:
        for process in processes:
            go(process)
        heard = [await asyncio.to_thread(told, process) for process in processes]
    assert sum(one["right"] for one in heard) == 200
    assert sum(one["loads"] for one in heard) == 1


@pytest.mark.judge
async def test_a_loader_that_was_killed_keeps_nobody_waiting_for_long(cenote_servers: TestServers) -> None:
    settings = cenote_servers.fresh()
    with askers(settings, 1, 1, 60) as (doomed,):
        go(doomed)
        async with cenote.open(**settings) as store:
            core = store._machines.core
            question = {"last_by_subj": core.names.subject("ANSWERS") + "=load.question"}

            async def held() -> bool:
                with contextlib.suppress(cenote.CenoteError):
                    return bool(await core.link.api(f"STREAM.MSG.GET.{core.names.stream('ANSWERS')}", question))
                return False

            await reached(held, "the lease")
            load = Loader("ours")
            waiting = asyncio.create_task(store.cache.get_or_load("question", load))
            await asyncio.sleep(0.3)
            assert load.calls == 0
            doomed.kill()
            began = time.monotonic()
            assert await waiting == "ours"
            assert load.calls == 1
            assert time.monotonic() - began < 10


async def test_a_failing_loader_and_an_old_answer(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        load = Loader({"n": 1})
        assert await store.cache.get_or_load("k", load, ttl=timedelta(seconds=0.3), stale=60) == {"n": 1}
        assert await store.cache.get_or_load("k", load) == {"n": 1}
        assert load.calls == 1
        await asyncio.sleep(0.4)
        load.error = ValueError("the source is away")
        assert await store.cache.get_or_load("k", load, stale=60) == {"n": 1}
        assert store.cache.counts.stale == 1
        with pytest.raises(ValueError, match="away"):
            await store.cache.get_or_load("k", load)
        with pytest.raises(ValueError, match="away"):
            await store.cache.get_or_load("k", load, stale=0.05)
        assert await store.cache.get("k", "none") == "none"
        load.error, load.seconds, load.value = None, 1.0, {"n": 2}
        began = time.monotonic()
        assert await store.cache.get_or_load("k", load, stale=60, soft_timeout=0.05) == {"n": 1}
        assert time.monotonic() - began < 0.9

        async def renewed() -> bool:
            return bool(await store.cache.get("k") == {"n": 2})

        await reached(renewed, "the new answer")


async def test_that_there_is_none_is_remembered_when_asked_for(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        load = Loader(None)
        load.error = cenote.NotFoundError("no such cave")
        for _ in range(2):
            with pytest.raises(cenote.NotFoundError, match="no such cave"):
                await store.cache.get_or_load("k", load)
        assert load.calls == 2
        for _ in range(3):
            with pytest.raises(cenote.NotFoundError):
                await store.cache.get_or_load("k", load, absent=60)
        assert load.calls == 3
        await store.cache.delete("k")
        load.error = None
        assert await store.cache.get_or_load("k", load, absent=60) is None
        assert await store.cache.get_or_load("k", load) is None
        assert load.calls == 4


async def test_no_copy_outlives_its_time_or_its_successor(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, another(store) as other:
        await store.cache.put("k", 1, ttl=timedelta(seconds=1))
        ends = time.monotonic() + 1.0
        for one in (store, other, store, other):
            assert await one.cache.get("k") == 1
        assert min(one.cache.counts.hits_l1 for one in (store, other)) >= 1
        await asyncio.sleep(max(0.0, ends - time.monotonic()) + 0.05)
        assert await store.cache.get("k") is None
        assert await other.cache.get("k") is None

        await store.cache.put("k", 2)
        assert await other.cache.get("k") == await other.cache.get("k") == 2
        await store.cache.put("k", 3)

        async def seen(wanted: object) -> bool:
            return bool(await other.cache.get("k") == wanted)

        await reached(lambda: seen(3), "the new answer")
        await store.cache.delete("k")
        await reached(lambda: seen(None), "the end of it")
        assert await store.cache.get("k") is None


async def test_memory_is_bounded_and_given_back(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(memory__entries_max=50)) as store:
        for number in range(120):
            await store.cache.put(f"k{number}", number, ttl=timedelta(seconds=1 if number % 2 else 60))
            await store.cache.get(f"k{number}")
        near = store.cache._tiers._near
        assert len(near._held) == 50
        await asyncio.sleep(1.1)
        store.cache.evict_expired()  # some may have left already, at the server's word
        assert len(near._held) == 25
        assert near._bytes == sum(len(subject) + len(found[0].body) + 400 for subject, found in near._held.items())


async def test_every_caller_has_a_copy_of_his_own(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        load = Loader([1, (2, 3), b"4"])
        first, second = await asyncio.gather(*(store.cache.get_or_load("k. ä", load) for _ in range(2)))
        first.append("mine")
        assert second == await store.cache.get_or_load("k. ä", load) == [1, (2, 3), b"4"]
        with pytest.raises(cenote.RejectedError):
            await store.cache.get_or_load("other", Loader(object()))
        large = "x".join(str(n) for n in range(400_000))
        assert await store.cache.get_or_load("large", Loader(large)) == large
        assert store.cache.counts.unshared == 1


async def test_an_answer_begun_before_a_delete_or_a_put_is_not_kept(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, another(store) as other:
        for writer in (store, other):
            for change in (writer.cache.delete("k"), writer.cache.put("k", "newer")):
                await store.cache.delete("k")
                load = Loader("old", 0.5)
                asked = asyncio.create_task(store.cache.get_or_load("k", load))
                await reached(lambda load=load: load.calls == 1, "the load")
                await change
                assert await asked == "old"
                kept = await store.cache.get("k")
                assert kept in (None, "newer"), (writer is store, kept)
                assert await other.cache.get("k") == kept


async def test_kv_away_neither_fails_nor_delays_for_long(cenote_servers: TestServers) -> None:
    """Every process makes its own answers then, and an old one is given as ever."""
    async with (
        FaultProxy(urlsplit(cenote_servers.by_url()["kv"]).port or 0) as proxy,
        cenote.open(**cenote_servers.by_url(kv_port=proxy.port, flush__drain_ms=0)) as store,
    ):
        load = Loader(1)
        assert await store.cache.get_or_load("k", load) == 1
        assert await store.cache.get_or_load("k", load) == 1
        proxy.hold()
        began = time.monotonic()
        assert await store.cache.get_or_load("other", Loader(2)) == 2
        assert time.monotonic() - began < 20  # 2 s and 1 attempt, on a machine that is not this busy
        assert store.cache.counts.unshared == 1
        assert await store.cache.get_or_load("other", Loader(3)) == 2
        proxy.heal()
    assert load.calls == 1


async def test_what_a_loader_raises_gives_way_to_an_old_answer_or_comes_out(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        load = Loader(1)
        await store.cache.get_or_load("k", load, ttl=timedelta(milliseconds=200), stale=60)
        await asyncio.sleep(0.3)
        load.error = TimeoutError()
        assert await store.cache.get_or_load("k", load, stale=60) == 1
        load.error = cenote.NotFoundError("the cave was filled in")
        with pytest.raises(cenote.NotFoundError, match="filled in"):
            await store.cache.get_or_load("k", load, stale=60)
        with pytest.raises(cenote.RejectedError, match="stale"):
            await store.cache.get_or_load("k", load, stale=1e12)
