"""put against nats-py's `KeyValue.put` of the same bytes: same server, same event loop, each its own connection."""

from collections.abc import AsyncIterator

from cenote.bench.ground import UNFLUSHED, Effort, Ground, bare_bucket, bare_nats, bodies, core_of, samples
from cenote.bench.pace import in_turns, median_s, medians, rate_for, ratios
from cenote.bench.table import Bound, Result, Row

ALONE = Row(
    "put, one at a time, p50", "nats-py KeyValue.put, same bytes", "× its time", Bound("≤", 1.15), Bound("≤", 0.95)
)
MANY = Row(
    "put, 64 in flight, with headers, receipt and L1", "nats-py KeyValue.put", "× its rate",
    Bound("≥", 1.3), Bound("≥", 1.8),
)  # fmt: skip
_KEYS = 1_000


async def put_rows(ground: Ground, effort: Effort) -> AsyncIterator[Result]:
    """Latency and rate of writes. Nobody flushes here: what a flusher costs a writer is a row of its own."""
    async with ground.opening(**UNFLUSHED) as store:
        connection = await bare_nats(store)
        try:
            bucket = await bare_bucket(connection, store)
            scout = store.agent("scout-7")
            await scout.get("plan")
            assert core_of(store).coherence.listening, "L1 must follow the feed, as in a process that reads"
            values, texts = samples(), bodies()

            async def ours(number: int) -> None:
                await scout.put(f"key-{number % _KEYS}", values[number % _KEYS])

            async def theirs(number: int) -> None:
                await bucket.put(f"scout-7.key-{number % _KEYS}", texts[number % _KEYS])

            time_s = effort.round_s
            pairs = await in_turns(effort.rounds, lambda: median_s(time_s, ours), lambda: median_s(time_s, theirs))
            yield Result(ALONE, ratios(pairs), medians(pairs, 1e6, "µs"))
            pairs = await in_turns(effort.rounds, lambda: rate_for(time_s, ours), lambda: rate_for(time_s, theirs))
            yield Result(MANY, ratios(pairs), medians(pairs, 1, "puts/s"))
        finally:
            await connection.close()
