"""A process with a wrong wall clock: libfaketime gives it one. It does what standard input says, a line each, and
answers on standard output."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cenote
from cenote.agent import AgentState
from cenote.model.clock import HybridClock

AGENT = "clocks"
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


class Skewed:
    """The other end of such a process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def tell(self, do: str, key: str = "", value: Any = None) -> None:
        """Have it begin."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([do, key, value]) + "\n")
        self.process.stdin.flush()

    def heard(self) -> Any:
        """What came of it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process has ended"
        return json.loads(line)

    def ask(self, do: str, key: str = "", value: Any = None) -> Any:
        self.tell(do, key, value)
        return self.heard()


@contextmanager
def skewed(settings: dict[str, Any], name: str, by_s: int) -> Iterator[Skewed]:
    """Such a process, its wall clock wrong by so many seconds; its monotonic one is right."""
    wrong = {"LD_PRELOAD": str(LIBRARIES[0]), "FAKETIME": f"{by_s:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    portable = {name: str(one) if isinstance(one, Path) else one for name, one in settings.items()}
    process = subprocess.Popen(
        [sys.executable, __file__, name, json.dumps(portable)],
        env=os.environ | wrong, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield Skewed(process)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


class Worker:
    """What the process does."""

    def __init__(self, agent: AgentState, name: str) -> None:
        self.agent = agent
        self.clock = HybridClock(0, 0, name)

    async def work(self, do: str, key: str, value: Any) -> Any:
        agent = self.agent
        if do == "time":
            return time.time()
        if do == "get":
            found = await agent.get(key)
            return found.value if isinstance(found, cenote.Clocked) else found
        if do == "put":
            return str((await agent.put(key, value)).version)
        if do == "create":
            try:
                return str((await agent.put(key, value, if_version=0)).version)
            except cenote.ConflictError:
                return None
        if do == "put if newer":  # what the specification says: the newer wall time wins
            mine = {"value": value, "at": time.time()}
            return (
                await agent.update(key, lambda seen: mine if mine["at"] >= seen["at"] else seen, default=mine)
            ).value
        return await self.clocked(do, key, value)

    async def clocked(self, do: str, key: str, value: Any) -> Any:
        """Put or merge with a hybrid clock, having "seen" what is there, or "blind"; the clock is the answer."""
        wall_ms = time.time_ns() // 1_000_000
        verb, knowledge = do.split()
        there = await self.agent.get(key) if knowledge == "seen" else None
        self.clock = self.clock.now(wall_ms) if there is None else self.clock.receive(there.clock, wall_ms)
        mine = cenote.Clocked(value, self.clock)
        if verb == "put":
            await self.agent.put(key, mine)
        else:
            await self.agent.merge(key, mine)
        return self.clock.to_json()


async def main(name: str, settings: dict[str, Any]) -> None:
    """Work until standard input ends."""
    async with cenote.open(**settings) as store:
        worker = Worker(store.agent(AGENT), name)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await worker.work(*json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
