"""The other process of a benchmark: it does as it is told, a line of JSON each way."""

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import cenote
from cenote.bench.ground import core_of, samples
from cenote.bench.pace import drive
from cenote.store import Store

_POLL_S = 0.001


class Hand:
    """Drains, flushes alongside, or grows."""

    def __init__(self) -> None:
        self._store: Store | None = None

    async def drain(self, arguments: dict[str, Any], rows: int) -> float:
        """Rows per second from KV into SQL, from the moment that this process has the lease."""
        async with cenote.open(**arguments) as store:
            flusher, counts = store._machines.flusher, core_of(store).counts
            assert flusher is not None
            await _until(lambda: flusher.shift is not None)
            began = time.perf_counter()
            await _until(lambda: counts.flushed >= rows)
            return rows / (time.perf_counter() - began)

    async def flush(self, arguments: dict[str, Any]) -> bool:
        """Begin to flush; answers when the first rows are in SQL."""
        store = self._store = await cenote.open(**arguments)
        await _until(lambda: core_of(store).counts.flushed > 0)
        return True

    async def leave(self) -> int:
        """Stop flushing; the number of rows since `flush`."""
        store, self._store = self._store, None
        assert store is not None
        flushed = core_of(store).counts.flushed
        await store.aclose()
        return flushed

    async def grow(self, arguments: dict[str, Any], keys: int, agents: int) -> dict[str, float]:
        """Write so many keys, wait until SQL has them: memory above idle, and rows per second of the whole."""
        values = samples()
        async with cenote.open(**arguments) as store:
            await store.agent("scout-idle").put("plan", values[0])
            await store.flush()
            idle = _resident_bytes()
            each = keys // agents
            began = time.perf_counter()

            async def write(number: int) -> None:
                scout = store.agent(f"scout-{number}")
                for key in range(each):
                    await scout.put(f"key-{key}", values[(number + key) % len(values)])

            await drive(iter(range(agents)), write)
            wrote_s = time.perf_counter() - began
            await store.flush()
            took_s = time.perf_counter() - began
            above = _resident_bytes() - idle
            assert core_of(store).counts.flushed > keys
            return {"above_bytes": above, "puts_per_s": keys / wrote_s, "rows_per_s": keys / took_s}


async def _until(reached: Callable[[], bool]) -> None:
    while not reached():  # noqa: ASYNC110  counters raise no event
        await asyncio.sleep(_POLL_S)


def _resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _serve() -> None:
    hand = Hand()
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        answer = await getattr(hand, order.pop("order"))(**order)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_serve())
