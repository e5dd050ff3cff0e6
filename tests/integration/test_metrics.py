"""What Prometheus reads, by Prometheus' own parser, of stores on real servers."""

import math
from typing import Any

import asyncpg
import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed

import cenote
from cenote.engine.tally import Tally
from cenote.sql.errors import DataRefused
from cenote.sql.state import StateTable
from cenote.store import Store
from cenote.telemetry import exposition
from cenote.testing import TestServers
from witness import reached

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scraped(store: Store) -> Samples:
    """Every sample, by its name and labels."""
    text = (await exposition(store))[0].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parsed(text)
        for sample in family.samples
    }


def buckets(samples: Samples, name: str) -> list[tuple[float, float]]:
    """Bounds and counts of a histogram, as they were told."""
    return [(float(labels[0][1]), value) for (found, labels), value in samples.items() if found == f"{name}_bucket"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cenote_consistency_lag_seconds", 100),
        ("cenote_flush_batch_size", None),
        ("cenote_flush_duration_seconds", None),
    ],
)
async def test_histograms_are_cumulative_and_complete(
    cenote_servers: TestServers, name: str, expected: int | None
) -> None:
    async with cenote.open(**cenote_servers.fresh(flush__window_ms=170)) as store:
        await store.agent("ant").put_many({f"k{key}": key for key in range(100)})
        await store.flush(20)
        await reached(lambda: store.counted().lag_ms.count == 100, "all are counted")
        samples = await scraped(store)
        found = buckets(samples, name)
        bounds, counts = [bound for bound, _ in found], [count for _, count in found]
        assert bounds == sorted(bounds)
        assert bounds[-1] == math.inf
        assert counts == sorted(counts)
        number = samples[f"{name}_count", ()]
        assert counts[-1] == number > 0
        assert samples[f"{name}_sum", ()] > 0
        if expected is not None:
            assert number == expected
            assert 0.17 in bounds  # the window itself, whatever it is
        if name == "cenote_flush_batch_size":
            assert samples[f"{name}_sum", ()] == 100
            assert number == store._machines.core.counts.commits


async def test_every_process_tells_what_it_flushed_itself(cenote_servers: TestServers) -> None:
    """So that they may be added up; what is said of the store is the same everywhere."""
    at = cenote_servers.fresh()
    async with cenote.open(**at) as one, cenote.open(**at) as other:
        for number in range(20):
            await one.agent("ant").put(f"k{number}", number)
        await one.flush(20)
        await reached(lambda: sum(store.counted().lag_ms.count for store in (one, other)) == 20, "all are counted")
        mine, theirs = await scraped(one), await scraped(other)
        count = ("cenote_consistency_lag_seconds_count", ())
        assert sorted((mine[count], theirs[count])) == [0, 20]
        assert mine["cenote_flusher_active", ()] == theirs["cenote_flusher_active", ()] == 1


async def test_a_process_that_does_not_flush_tells_all_names_and_who_waits(cenote_servers: TestServers) -> None:
    at = cenote_servers.fresh(flush__enabled=False, flush__drain_ms=0, flush__backlog_count_max=5_000, sql__pool_max=3)
    async with cenote.open(**at) as store:
        await store.agent("ant").put("k", 1)
        samples = await scraped(store)
        assert samples["cenote_consistency_lag_seconds_count", ()] == 0
        assert samples["cenote_flusher_active", ()] == 0
        assert samples["cenote_dirty_keys", ()] == 1
        assert samples["cenote_backlog_limit", ()] == 5_000
        assert samples["cenote_consistency_window_seconds", ()] == 0.2
        assert samples["cenote_pool_size_max", ()] == 3
        assert samples["cenote_pool_idle", ()] <= samples["cenote_pool_size", ()] <= 3
        assert samples["cenote_pool_waiting", ()] == 0
        assert samples["cenote_flush_errors_total", (("error", "UnavailableError"),)] == 0
        assert samples["cenote_repairs_total", (("kind", "sql_missing"),)] == 0
        assert not [labels for _, labels in samples if "agent" in dict(labels)]


async def test_failed_flushes_and_dead_letters_are_counted(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = StateTable.flush
    trouble: list[cenote.CenoteError] = [
        cenote.UnavailableError("away"), cenote.TransactionError("again"), cenote.PoolTimeoutError("busy"),
    ]  # fmt: skip

    async def flush(self: StateTable, rows: Any, *rest: Any, **named: Any) -> Any:
        if trouble:
            raise trouble.pop()
        if any(row.key == "bad" for row in rows):
            raise DataRefused("not this one")
        return await plain(self, rows, *rest, **named)

    monkeypatch.setattr(StateTable, "flush", flush)
    async with cenote.open(**cenote_servers.fresh()) as store:
        await store.agent("ant").put_many({"good": 1, "bad": 2})
        await store.flush(20)
        samples = await scraped(store)
        for name in ("UnavailableError", "TransactionError", "PoolTimeoutError", "DataRefused"):
            assert samples["cenote_flush_errors_total", (("error", name),)] >= 1, name
        assert samples["cenote_tx_retries_total", ()] >= 1
        assert samples["cenote_dead_letters", ()] == 1
        await reached(lambda: _told(store, "cenote_dead_letters_total", 1), "the board tells of it")


async def _told(store: Store, name: str, value: float) -> bool:
    return (await scraped(store))[name, ()] == value


async def test_waiting_for_a_connection_and_running_again_are_counted(cenote_servers: TestServers) -> None:
    at = cenote_servers.fresh(flush__enabled=False, sql__pool_min=1, sql__pool_max=2, sql__acquire_timeout_s=0.2)
    async with cenote.open(**at) as store:
        db = store._machines.core.db
        async with db.connection(), db.connection():
            with pytest.raises(cenote.PoolTimeoutError):
                await db.fetchval("SELECT 1")
        runs = 0

        async def twice(tx: Any) -> None:
            nonlocal runs
            runs += 1
            if runs == 1:
                await tx.execute("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$")

        await store.transact(twice)
        assert runs == 2
        samples = await scraped(store)
        assert samples["cenote_pool_acquire_timeouts_total", ()] == 1
        assert samples["cenote_tx_retries_total", ()] == 1


async def test_repairs_are_counted_by_kind(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        await store.agent("ant").put_many({"one": 1, "two": 2}, atomic=True)
        await store.flush(20)
        names = store._machines.core.names
        con = await asyncpg.connect(store.config.sql.url.get_secret_value() if store.config.sql.url else "")
        try:
            await con.execute(f"DELETE FROM {names.schema_name('agents')}.state")
        finally:
            await con.close()

        async def mended() -> bool:
            await store.repair()
            return (await scraped(store))["cenote_repairs_total", (("kind", "sql_missing"),)] == 2

        await reached(mended, "both are mended")


async def test_without_servers_a_process_tells_what_it_counted(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cenote.open(**cenote_servers.fresh(flush__drain_ms=0)) as store:
        await store.agent("ant").put("k", 1, durability="sql")

        async def away(self: Store) -> cenote.Stats:
            raise cenote.UnavailableError("away")

        monkeypatch.setattr(Store, "stats", away)
        await reached(lambda: store.counted().lag_ms.count == 1, "the write is counted")
        samples = await scraped(store)
        assert samples["cenote_consistency_lag_seconds_count", ()] == 1
        assert ("cenote_dirty_keys", ()) not in samples


def test_a_tally_counts_a_bound_as_not_above_itself() -> None:
    tally = Tally((10, 200, 50, 200))
    tally.add(10, 10.5, 200, 201)
    tally.add()
    assert list(tally.cumulative()) == [(10, 1), (50, 2), (200, 3), (math.inf, 4)]
    assert (tally.sum, tally.count) == (421.5, 4)
