"""What the flow leaves behind: WAL for each row, and memory for each process, small and large."""

import asyncio
import random
from collections.abc import AsyncIterator

import asyncpg

from cenote.bench.ground import VALUE_BYTES, Effort, Ground, bare_postgres, core_of, samples
from cenote.bench.table import Bound, Result, Row
from cenote.bench.worker import Worker
from cenote.limits import MIB
from cenote.store import Store

WAL = Row(
    f"WAL per hot flushed row of {VALUE_BYTES} bytes, batches of random keys", "", "bytes",
    Bound("≤", 560), Bound("≤", 400),
)  # fmt: skip
HOT = Row("HOT updates", "", "%", Bound("≥", 99), None)
MEMORY = Row("memory after {:,} keys written and flushed by one process", "idle", "MiB above", Bound("≤", 64), None)
LARGE_RATE = Row(
    "1,000,000 keys in 10,000 agents, written and flushed", "100,000 keys", "× its rate", Bound("≥", 0.8), None
)
LARGE_MEMORY = Row("memory after 1,000,000 keys", "idle", "MiB above", Bound("≤", 64), None)
_BATCH = 500
_STATISTICS_S = 20.0


async def wal_rows(ground: Ground, effort: Effort) -> AsyncIterator[Result]:
    """Through the whole flow: put_many of random keys, flushed by this process; all WAL of the server counts."""
    async with ground.opening() as store:
        connection = await bare_postgres(store)
        try:
            meter = WalMeter(store, connection, effort.wal_keys)
            await meter.fill()
            rounds = [await meter.round(effort.wal_keys // _BATCH // 2) for _ in range(effort.wal_rounds)]
            yield Result(WAL, rounds, f"{meter.batches} batches")
            yield Result(HOT, [await meter.hot_percent()], f"of {meter.updates:,} updates")
        finally:
            await connection.close()


class WalMeter:
    """Reads PostgreSQL's own counters around flushes of updates."""

    def __init__(self, store: Store, connection: asyncpg.Connection, keys: int) -> None:
        self._store = store
        self._scout = store.agent("scout-7")
        self._connection = connection
        self._keys = keys
        self._dice = random.Random(7)
        self._schema = core_of(store).names.schema("agents").strip('"')
        self.batches = 0
        self.updates = 0

    async def fill(self) -> None:
        """Insert every row, then update each once, so that its page's full image is in the WAL already."""
        for turn in range(2):
            numbers = self._dice.sample(range(self._keys), self._keys)
            for start in range(0, self._keys, _BATCH):
                await self._put(numbers[start : start + _BATCH], turn)
            await self._store.flush()
        self._before = await self._updates(self._keys)

    async def round(self, batches: int) -> float:
        """WAL bytes per row over so many batches of random keys."""
        before = await self._connection.fetchval("SELECT pg_current_wal_lsn()")
        for _ in range(batches):
            self.batches += 1
            await self._put(self._dice.sample(range(self._keys), _BATCH), self.batches)
            await self._store.flush()
        self.updates += batches * _BATCH
        written = await self._connection.fetchval("SELECT pg_current_wal_lsn() - $1::pg_lsn", before)
        return float(written) / (batches * _BATCH)

    async def hot_percent(self) -> float:
        """The share of updates since `fill` that touched no index."""
        updates, hot = await self._updates(self._before[0] + self.updates)
        return 100.0 * (hot - self._before[1]) / (updates - self._before[0])

    async def _put(self, numbers: list[int], turn: int) -> None:
        values = samples()
        await self._scout.put_many({f"key-{number}": values[(number + turn) % len(values)] for number in numbers})

    async def _updates(self, expected: int) -> tuple[int, int]:
        """PostgreSQL counts late (manual, 28.2): wait until all updates are counted."""
        query = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = $1 AND relname = 'state'"
        async with asyncio.timeout(_STATISTICS_S):
            while True:
                updates, hot = await self._connection.fetchrow(query, self._schema)
                if updates >= expected:
                    return updates, hot
                await asyncio.sleep(0.1)


async def memory_rows(ground: Ground, effort: Effort) -> AsyncIterator[Result]:
    """A process that only writes and flushes, ten keys an agent; then ten times as many agents of ten times as many
    keys, between two more runs of the small size."""
    small = [
        await _grown(ground, effort.memory_keys, effort.memory_keys // 10) for _ in range(3 if effort.million else 1)
    ]
    rates = f"{small[0]['puts_per_s']:,.0f} puts/s, {small[0]['rows_per_s']:,.0f} rows/s to the last commit"
    row = MEMORY._replace(what=MEMORY.what.format(effort.memory_keys))
    yield Result(row, [one["above_bytes"] / MIB for one in small], rates)
    if not effort.million:
        return
    large = await _grown(ground, 1_000_000, 10_000)
    small.append(await _grown(ground, effort.memory_keys, 1_000))
    note = f"{large['puts_per_s']:,.0f} puts/s, {large['rows_per_s']:,.0f} rows/s; one run against {len(small)}"
    yield Result(LARGE_RATE, [large["rows_per_s"] / one["rows_per_s"] for one in small], note)
    yield Result(LARGE_MEMORY, [large["above_bytes"] / MIB])


async def _grown(ground: Ground, keys: int, agents: int) -> dict[str, float]:
    async with Worker() as worker:
        found: dict[str, float] = await worker.ask(
            "grow", arguments=ground.arguments(flush__drain_ms=60_000), keys=keys, agents=agents
        )
        return found
