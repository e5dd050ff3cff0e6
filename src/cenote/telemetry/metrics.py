"""Names and values of metrics. Base units, as Prometheus wants them: seconds, bytes, shares of one.

Two kinds stand side by side. What is said of the *store* (gauges, windows, and what flushers tell on their board) is
the same whichever process is asked: take the `max` over processes. What a *process* counted of its own doings
(histograms, errors, retries, the pool) is added up over processes.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from cenote.errors import CenoteError


class _Store(Protocol):
    """What is asked of a store."""

    def counted(self) -> Any:
        """See `Store.counted`."""

    async def stats(self) -> Any:
        """See `Store.stats`."""

    async def health(self) -> Any:
        """See `Store.health`."""


class _Name(NamedTuple):
    """A metric: what it is called, what it says, the field of `Stats` it comes from, and what that is multiplied by."""

    name: str
    help: str
    field: str
    by: float = 1.0


GAUGES: Final = (
    _Name("cenote_kv_entries", "Entries in NATS, tombstones and copies included.", "kv_entries"),
    _Name("cenote_kv_bytes", "Bytes of the stream.", "kv_bytes"),
    _Name("cenote_kv_fill_ratio", "Share of kv.bytes_max that is in use.", "kv_fill"),
    _Name("cenote_sql_rows", "Rows of agents.state, an estimate when they are many.", "sql_rows"),
    _Name("cenote_dirty_keys", "Entries that no flusher has acknowledged yet.", "dirty_entries"),
    _Name("cenote_oldest_dirty_age_seconds", "Age of the oldest write that SQL may lack.", "oldest_dirty_ms", 1e-3),
    _Name("cenote_flush_rate", "Rows that reached PostgreSQL per second, over 10 s.", "flush_rate"),
    _Name("cenote_epoch", "The newest epoch of the stream.", "epoch"),
)  # fmt: skip
COUNTERS: Final = (
    _Name("cenote_consistency_violations", "Writes that took longer than flush.window_ms.", "violations"),
    _Name("cenote_flushed_rows", "Rows that flushers have committed.", "flushed"),
    _Name("cenote_flush_commits", "Commits of flushers.", "commits"),
    _Name("cenote_evicted", "Entries that left NATS because PostgreSQL has them.", "evicted"),
    _Name("cenote_expired_rows", "Rows whose time was over.", "expired"),
    _Name("cenote_collected_rows", "Tombstones that left PostgreSQL.", "collected"),
    _Name("cenote_dead_letters", "Writes that PostgreSQL refused.", "quarantined"),
    _Name("cenote_hydrations", "Copies that this process put back into NATS.", "hydrated"),
    _Name("cenote_writes", "Writes of this process.", "writes"),
    _Name("cenote_sql_commits_lost", "Commits that PostgreSQL had and lost by going back in time.", "sql_commits_lost"),
)
# Of the process that is asked, from `Counted`; the last is what a value is multiplied by.
HISTOGRAMS: Final = (
    _Name("cenote_consistency_lag_seconds", "From NATS's ack to PostgreSQL's commit.", "lag_ms", 1e-3),
    _Name("cenote_flush_duration_seconds", "From taking a batch in hand to its acks.", "flush_ms", 1e-3),
    _Name("cenote_flush_batch_size", "Rows of a commit.", "batch_rows"),
)  # fmt: skip
OWN_GAUGES: Final = (
    _Name("cenote_consistency_window_seconds", "The setting flush.window_ms.", "window_ms", 1e-3),
    _Name("cenote_backlog_limit", "The setting flush.backlog_count_max; then writes are refused.", "backlog_max"),
)  # fmt: skip
POOL: Final = (
    _Name("cenote_pool_size", "Connections to PostgreSQL that are open.", "open"),
    _Name("cenote_pool_size_max", "The setting sql.pool_max.", "most"),
    _Name("cenote_pool_idle", "Open connections that nobody uses.", "idle"),
    _Name("cenote_pool_waiting", "Calls that wait for a connection.", "waiting"),
    _Name("cenote_pool_wait_seconds", "How long the first of them has waited.", "waited_ms", 1e-3),
)  # fmt: skip
WINDOWS: Final = "cenote_consistency_lag_window_seconds"
FLUSHER: Final = "cenote_flusher_active"
LETTERS: Final = "cenote_dead_letters"
POOL_TIMEOUTS: Final = "cenote_pool_acquire_timeouts"
RETRIES: Final = "cenote_tx_retries"
FLUSH_ERRORS: Final = "cenote_flush_errors"
REPAIRS: Final = "cenote_repairs"
DIFFERENCES: Final = "cenote_repair_differences"
OUT: Final = "cenote_server_out"
HITS: Final = "cenote_cache_requests"
CONFLICTS: Final = "cenote_conflicts"
HEALTH: Final = "cenote_health"
_VERDICTS: Final = {"healthy": 0, "degraded": 1, "unhealthy": 2}


async def exposition(store: _Store) -> tuple[bytes, str]:
    """The store's metrics as Prometheus reads them, and their content type. Of a store that cannot be asked its health
    only, and what this process has counted."""
    health = await store.health()
    families = [*_of_health(health), *_of_process(store.counted())]
    with suppress(CenoteError):  # what is wrong stands in the health
        families += _of_stats(await store.stats())
    registry = CollectorRegistry()
    registry.register(_Once(families))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Once:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """What was counted at this moment."""
        yield from self._families


def _of_stats(stats: Any) -> Iterator[Metric]:
    for one in GAUGES:
        value = getattr(stats, one.field)
        if value is not None:
            yield GaugeMetricFamily(one.name, one.help, value=value * one.by)
    for one in COUNTERS:
        yield CounterMetricFamily(one.name, one.help, value=getattr(stats, one.field))
    yield GaugeMetricFamily(FLUSHER, "1 while a process flushes, whichever.", value=bool(stats.flusher))
    lag = GaugeMetricFamily(WINDOWS, "The lag of the last seconds, with what waits.", labels=["window", "quantile"])
    for name, window in stats.windows.items():
        for quantile, value in (("0.5", window.p50), ("0.95", window.p95), ("0.99", window.p99)):
            if value is not None:
                lag.add_metric([name, quantile], value / 1000)
    yield lag
    yield _labelled(HITS, "Reads of this process by the tier that answered.", "tier", stats.hits)
    conflicts = CounterMetricFamily(CONFLICTS, "Meetings of two writes.", labels=["strategy", "outcome"])
    for strategy, outcomes in stats.conflicts.items():
        for outcome, count in outcomes.items():
            conflicts.add_metric([strategy, outcome], count)
    yield conflicts


def _of_process(counted: Any) -> Iterator[Metric]:
    for one in HISTOGRAMS:
        tally = getattr(counted, one.field)
        buckets = [(_bound(bound * one.by), number) for bound, number in tally.cumulative()]
        yield HistogramMetricFamily(one.name, one.help, buckets=buckets, sum_value=tally.sum * one.by)
    for one in OWN_GAUGES:
        yield GaugeMetricFamily(one.name, one.help, value=getattr(counted, one.field) * one.by)
    pool = counted.pool._asdict() | {"idle": counted.pool.open - counted.pool.used}
    for one in POOL:
        yield GaugeMetricFamily(one.name, one.help, value=pool[one.field] * one.by)
    timeouts = "Calls that got no connection within sql.acquire_timeout_s."
    yield CounterMetricFamily(POOL_TIMEOUTS, timeouts, value=counted.pool_timeouts)
    retried = "Transactions that were run again because PostgreSQL asked for it."
    yield CounterMetricFamily(RETRIES, retried, value=counted.tx_retries)
    yield _labelled(FLUSH_ERRORS, "Tries to flush that failed, by error.", "error", counted.flush_errors)
    yield _labelled(REPAIRS, "Differences between the tiers that were mended, by kind.", "kind", counted.repairs)
    yield _labelled(DIFFERENCES, "Differences between the tiers that repairs found.", "kind", counted.differences)
    out = GaugeMetricFamily(OUT, "1 while a server counts as out: calls are refused.", labels=["server"])
    for server, is_out in counted.out.items():
        out.add_metric([server], is_out)
    yield out


def _bound(value: float) -> str:
    return "+Inf" if value == float("inf") else repr(round(value, 9))


def _labelled(name: str, text: str, label: str, counts: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _of_health(health: Any) -> Iterator[Metric]:
    family = GaugeMetricFamily(HEALTH, "0 healthy, 1 degraded, 2 unhealthy.", labels=["check"])
    family.add_metric(["all"], _VERDICTS[health.verdict.value])
    for check in health.checks:
        family.add_metric([check.name], _VERDICTS[check.verdict.value])
        if check.name == "dead letters":
            yield GaugeMetricFamily(LETTERS, "Refused writes that wait for a decision.", value=check.details["count"])
    yield family
