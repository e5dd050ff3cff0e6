"""kill -9 of writers in the midst of atomic batches, and of the flusher: all or none in reads, in watches, after
hydration (I5, I12; flow rule 24)."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import batches
import pytest

import cenote
from cenote.testing import TestServers
from witness import another, demand, evict_all

CHILD = Path(__file__).with_name("batches.py")
pytestmark = pytest.mark.judge


class Children:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = {name: str(one) if name == "data_dir" else one for name, one in settings.items()}
        self.running: list[subprocess.Popen[bytes]] = []
        self.number = 0
        self.said: Counter[str] = Counter()
        self.listening: list[asyncio.Task[None]] = []

    def start(self, kind: str, *, size: int = 0, crash_at: str = "", **settings: Any) -> subprocess.Popen[bytes]:
        self.number += 1
        given = {"settings": self.settings | settings, "kind": kind, "session": f"s{self.number}", "size": size}
        environment = os.environ | ({"CENOTE_CRASH_AT": crash_at} if crash_at else {})
        command = [sys.executable, str(CHILD), json.dumps(given)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        self.running.append(process)
        self.listening.append(asyncio.create_task(asyncio.to_thread(self._listen, process)))
        return process

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self.said[line.decode().strip()] += 1

    async def end(self) -> None:
        for process in self.running:
            process.kill()
            await asyncio.to_thread(process.wait)
        await asyncio.gather(*self.listening)


@pytest.mark.parametrize("size", [50, 600])
async def test_whoever_dies_a_batch_is_there_or_not(size: int, cenote_servers: TestServers) -> None:
    settings = cenote_servers.fresh(state__ttl_s=2, flush__drain_ms=0)
    keys = [f"k{number}" for number in range(size)]
    async with cenote.open(**settings) as store:
        await store.agent(batches.AGENT).put_many(dict.fromkeys(keys, "seed.0"), atomic=True)
        await store.agent(batches.AGENT).put_many(dict.fromkeys(keys[::2], "seed.0"), atomic=True)
        assert await evict_all(store) >= size
        await store.agent(batches.AGENT).put_many(dict.fromkeys(keys[::3], "seed.0"), atomic=True)
    children, looks, told = Children(settings), Counter[str](), Counter[str]()
    idle = {"flush__enabled": False}
    async with cenote.open(**(settings | idle)) as store, another(store) as other:

        async def read(view: Any, name: str) -> None:
            while True:
                seen = await view.get_many(keys)
                demand(len(seen) == size and len(set(seen.values())) == 1, f"I5: torn: {Counter(seen.values())}")
                looks[name] += 1
                await asyncio.sleep(0.003)

        async def follow(view: Any) -> None:
            async for entry in view.watch("k"):
                told[entry.value] += 1
                if told[entry.value] == 1:
                    seen = await view.get_many(keys)
                    demand(len(set(seen.values())) == 1, f"I5: after an event: {Counter(seen.values())}")

        async def kill() -> None:
            for nth in range(4):
                flusher = children.start("flush")
                crash = children.start(
                    "write", size=size, crash_at=f"batch.{('sent', 'acked')[nth % 2]}:{3 + nth}", **idle
                )
                steady = children.start("write", size=size, **idle)
                assert await asyncio.to_thread(crash.wait, 30) == -signal.SIGKILL
                await asyncio.sleep(0.7)
                steady.kill()  # wherever it is
                flusher.kill()

        jobs = [asyncio.create_task(job) for job in (
            read(store.agent(batches.AGENT), "one"), read(other.agent(batches.AGENT), "two"),
            follow(other.agent(batches.AGENT)),
        )]  # fmt: skip
        try:
            killing = asyncio.create_task(kill())
            await asyncio.wait([killing, *jobs], return_when=asyncio.FIRST_COMPLETED)
            for job in jobs:
                if job.done():
                    job.result()
            await killing
            children.start("flush")  # the next one finds everything
            await store.flush(20)
            await evict_all(store)
            await asyncio.sleep(2.5)
        finally:
            for job in jobs:
                job.cancel()
            await children.end()
    async with cenote.open(**settings) as store:
        await store.flush(20)
        await evict_all(store)
        await store.agent(batches.AGENT).hydrate()
        seen = await store.agent(batches.AGENT).get_many(keys)
        demand(len(seen) == size and len(set(seen.values())) == 1, f"I5: torn for good: {Counter(seen.values())}")
    assert children.said["acked"] > 20
    assert min(looks["one"], looks["two"]) > 20
    assert told
    print(size, dict(children.said), dict(looks), "batches in the watch:", len(told))


async def test_amounts_that_move_are_neither_made_nor_lost(cenote_servers: TestServers) -> None:
    settings = cenote_servers.fresh(state__ttl_s=2, flush__drain_ms=0)
    async with cenote.open(**settings) as store:
        agent = store.agent(batches.AGENT)
        await agent.put_many(dict.fromkeys(batches.ACCOUNTS, 1000), atomic=True)
        assert await evict_all(store) >= 20
        children, looks = Children(settings), 0
        try:
            for nth in range(4):
                children.start("move", crash_at="batch.sent:20" if nth == 1 else "", flush__enabled=False)
            until = asyncio.get_running_loop().time() + 10
            while asyncio.get_running_loop().time() < until:
                seen = await agent.get_many(batches.ACCOUNTS)
                demand(sum(seen.values()) == 20_000, f"I5, I12: the sum is {sum(seen.values())}")
                looks += 1
                await asyncio.sleep(0.002)
        finally:
            await children.end()
        await store.flush(20)
        await evict_all(store)
        assert sum((await agent.get_many(batches.ACCOUNTS)).values()) == 20_000
        assert children.running[1].returncode == -signal.SIGKILL
        assert children.said["acked"] > 50
        print(dict(children.said), looks)
