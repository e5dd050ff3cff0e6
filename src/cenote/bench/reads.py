"""get from KV against nats-py's `KeyValue.get`, and get from L1 by itself."""

import statistics
import time
from collections.abc import AsyncIterator

from cenote.agent import AgentState
from cenote.bench.ground import UNFLUSHED, Effort, Ground, bare_bucket, bare_nats, bodies, core_of, samples
from cenote.bench.pace import drive, in_turns, medians, rate_for, ratios
from cenote.bench.table import Bound, Result, Row

KV = Row("get from KV, 64 in flight", "nats-py KeyValue.get", "× its rate", Bound("≥", 1.8), Bound("≥", 2.3))
MEMORY = Row("get from L1, p50, the caller's own copy", "", "µs", Bound("≤", 3), Bound("≤", 2))
_KEYS = 1_000
_MEMORY_GETS = 5_000


async def get_rows(ground: Ground, effort: Effort) -> AsyncIterator[Result]:
    """First with an L1 that holds nothing, then with one that holds everything."""
    async with ground.opening(**UNFLUSHED, memory__entries_max=0) as store:
        connection = await bare_nats(store)
        try:
            bucket = await bare_bucket(connection, store)
            scout = store.agent("scout-7")
            await scout.put_many({f"key-{number}": samples()[number] for number in range(_KEYS)})
            await drive(iter(range(_KEYS)), lambda number: bucket.put(f"scout-7.key-{number}", bodies()[number]))

            async def ours(number: int) -> None:
                assert await scout.get(f"key-{number % _KEYS}") is not None

            async def theirs(number: int) -> None:
                assert (await bucket.get(f"scout-7.key-{number % _KEYS}")).value is not None

            time_s = effort.round_s
            pairs = await in_turns(effort.rounds, lambda: rate_for(time_s, ours), lambda: rate_for(time_s, theirs))
            assert not core_of(store).counts.hits_l1
            yield Result(KV, ratios(pairs), medians(pairs, 1, "gets/s"))
        finally:
            await connection.close()
    async with ground.opening(**UNFLUSHED) as store:
        scout = store.agent("scout-7")
        await scout.put("plan", samples()[0])
        await scout.get("plan")
        rounds = [await _memory_us(scout) for _ in range(effort.rounds)]
        assert core_of(store).counts.hits_l1 == effort.rounds * _MEMORY_GETS
        yield Result(MEMORY, rounds, f"decoding {len(bodies()[0])} bytes included")


async def _memory_us(scout: AgentState) -> float:
    took = []
    for _ in range(_MEMORY_GETS):
        began = time.perf_counter_ns()
        await scout.get("plan")
        took.append(time.perf_counter_ns() - began)
    return statistics.median(took) / 1000
