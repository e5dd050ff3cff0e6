"""The way into SQL: how fast a backlog drains, what that costs a writer, and how late a write arrives."""

import asyncio
import time
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg

from cenote.bench.ground import UNFLUSHED, Effort, Ground, bare_postgres, bodies, core_of, samples
from cenote.bench.pace import drive, in_turns, medians, rate_for, ratios
from cenote.bench.table import Bound, Result, Row
from cenote.bench.worker import Worker
from cenote.store import Store

DRAIN = Row(
    "drain a backlog KV → SQL, one flusher process", "bare asyncpg unnest upsert, same rows and batch",
    "× its rate", Bound("≥", 0.35), Bound("≥", 0.7),
)  # fmt: skip
BESIDE = Row(
    "writer's rate while a flusher in another process drains", "itself without a flusher", "× its rate",
    Bound("≥", 0.7), Bound("≥", 0.9),
)  # fmt: skip
LAG_95 = Row("lag p95 at 5,000 puts/s, one process", "the window, 200 ms", "ms", Bound("≤", 50), Bound("≤", 15))
LAG_99 = Row("lag p99 at 5,000 puts/s, one process", "the window, 200 ms", "ms", Bound("≤", 100), Bound("≤", 40))
_KEYS_PER_AGENT = 1_000
_LAG_RATE = 5_000
_LAG_KEYS = 5_000
_TICK_S = 0.002

_BARE_TABLE = """
CREATE SCHEMA bench;
CREATE TABLE bench.state (
  agent_id uuid NOT NULL, key text COLLATE "C" NOT NULL, value jsonb NOT NULL, version bigint NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (agent_id, key)
) WITH (fillfactor = 85)
"""
_BARE_UPSERT = """
INSERT INTO bench.state AS s (agent_id, key, value, version)
SELECT a, k, v::jsonb, r FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[]) AS u (a, k, v, r)
ON CONFLICT (agent_id, key) DO UPDATE
   SET value = excluded.value, version = excluded.version, updated_at = now()
 WHERE s.version < excluded.version
"""


async def drain_row(ground: Ground, effort: Effort) -> AsyncIterator[Result]:
    """A backlog of distinct keys, every round the same ones with other values, so that SQL updates them."""
    arguments = ground.arguments()
    async with ground.at(arguments, **UNFLUSHED) as store, Worker() as worker:
        connection = await bare_postgres(store)
        try:
            await connection.execute(_BARE_TABLE)
            bare = _Bare(connection, effort.backlog_rows, core_of(store).config.flush.batch_count_max)
            turn = 0

            async def ours() -> float:
                nonlocal turn
                turn += 1
                await _write(store, effort.backlog_rows, turn)
                return float(await worker.ask("drain", arguments=arguments, rows=effort.backlog_rows))

            pairs = await in_turns(effort.backlog_rounds, ours, bare.upsert)
            yield Result(DRAIN, ratios(pairs), medians(pairs, 1, "rows/s"))
        finally:
            await connection.close()


async def beside_row(ground: Ground, effort: Effort) -> AsyncIterator[Result]:
    """The writer never stops; now another process drains what it writes, now nobody does."""
    arguments = ground.arguments()
    async with ground.at(arguments, **UNFLUSHED) as store, Worker() as worker:
        agents = [store.agent(f"scout-{number}") for number in range(5)]
        values = samples()

        async def put(number: int) -> None:
            await agents[number % 5].put(f"key-{number // 5 % _KEYS_PER_AGENT}", values[number * 7 % len(values)])

        async def alone() -> float:
            return await rate_for(effort.beside_s, put)

        flushed = 0

        async def drained() -> float:
            nonlocal flushed
            await rate_for(effort.beside_s / 4, put)  # something to drain
            await worker.ask("flush", arguments=arguments)
            rate = await rate_for(effort.beside_s, put)
            flushed += await worker.ask("leave")
            return rate

        pairs = await in_turns(effort.beside_rounds, drained, alone)
        assert flushed > effort.beside_rounds
        yield Result(BESIDE, ratios(pairs), medians(pairs, 1, "puts/s") + f"; {flushed:,} rows flushed beside")


async def lag_rows(ground: Ground, effort: Effort) -> AsyncIterator[Result]:
    """Writes arrive at their own pace, however long the earlier ones take; the gauge is the flusher's own."""
    async with ground.opening(health__window_s=effort.lag_s) as store:
        await store.agent("scout-0").put("plan", samples()[0])
        await store.flush()
        await _paced(store, 2.0)
        rate = await _paced(store, effort.lag_s)
        flusher = store._machines.flusher
        assert flusher is not None
        p50, p95, p99 = flusher.lag.percentiles(0.50, 0.95, 0.99)
        assert p50 is not None
        assert p95 is not None
        assert p99 is not None
        note = f"{effort.lag_s} s at {rate:,.0f} puts/s acknowledged; p50 {p50:.0f} ms"
        yield Result(LAG_95, [p95], note)
        yield Result(LAG_99, [p99], f"{flusher.lag.violations} writes above the window")


async def _paced(store: Store, seconds: float) -> float:
    """Begin writes at `_LAG_RATE` for so long; the rate at which they were acknowledged."""
    agents = [store.agent(f"scout-{number}") for number in range(50)]
    values = samples()
    began = time.perf_counter()
    running: set[asyncio.Task[object]] = set()
    sent = 0
    while (elapsed := time.perf_counter() - began) < seconds:
        due = int(elapsed * _LAG_RATE)
        while sent < due:
            key = sent * 7 % _LAG_KEYS
            write = agents[key % 50].put(f"key-{key // 50}", values[sent % len(values)])
            task: asyncio.Task[object] = asyncio.create_task(write)
            running.add(task)
            task.add_done_callback(running.discard)
            sent += 1
        await asyncio.sleep(_TICK_S)
    await asyncio.gather(*running)
    return sent / (time.perf_counter() - began)


async def _write(store: Store, rows: int, turn: int) -> None:
    agents = [store.agent(f"scout-{number}") for number in range(-(-rows // _KEYS_PER_AGENT))]
    values = samples()

    async def put(number: int) -> None:
        agent, key = divmod(number, _KEYS_PER_AGENT)
        await agents[agent].put(f"key-{key}", values[(number + turn) % len(values)])

    await drive(iter(range(rows)), put)


class _Bare:
    """The same rows, ready as columns and sorted by key, into a table that has only what it needs."""

    def __init__(self, connection: asyncpg.Connection, rows: int, batch: int) -> None:
        self._connection = connection
        self._rows = rows
        self._batch = batch
        self._turn = 0

    async def upsert(self) -> float:
        self._turn += 1
        batches = [
            self._columns(range(at, min(at + self._batch, self._rows))) for at in range(0, self._rows, self._batch)
        ]
        statement = await self._connection.prepare(_BARE_UPSERT)
        began = time.perf_counter()
        for columns in batches:
            await statement.fetch(*columns)
        return self._rows / (time.perf_counter() - began)

    def _columns(self, numbers: range) -> tuple[list[object], ...]:
        texts = bodies()
        places = sorted((number // _KEYS_PER_AGENT, f"key-{number % _KEYS_PER_AGENT}", number) for number in numbers)
        return (
            [UUID(int=agent) for agent, _, _ in places],
            [key for _, key, _ in places],
            [texts[(number + self._turn) % len(texts)].decode() for _, _, number in places],
            [self._turn for _ in places],
        )
