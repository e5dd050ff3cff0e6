"""A dashboard for Grafana: the distance between the tiers, and what stands behind it."""

from typing import Any, Final, NamedTuple


class Panel(NamedTuple):
    """One graph: its title, the unit as Grafana names it, and pairs of a query and what a line of it is called."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


_RATE: Final = "[$__rate_interval]"
PANELS: Final = (
    Panel("Oldest write that PostgreSQL may lack", "s", (("max(cenote_oldest_dirty_age_seconds)", "age"),)),
    Panel("Writes that wait", "short", (("max(cenote_dirty_keys)", "waiting"),)),
    Panel("Health: 0 well, 1 degraded, 2 unhealthy", "short", (("max by (check) (cenote_health)", "{{check}}"),)),
    Panel("Lag, over a minute", "s", (
        ('max by (quantile) (cenote_consistency_lag_window_seconds{window="1m"})', "{{quantile}}"),
    )),
    Panel("Lag, all processes", "s", (
        (f"histogram_quantile(0.95, sum by (le) (rate(cenote_consistency_lag_seconds_bucket{_RATE})))", "p95"),
        (f"histogram_quantile(0.99, sum by (le) (rate(cenote_consistency_lag_seconds_bucket{_RATE})))", "p99"),
    )),
    Panel("Late writes per second", "wps", ((f"max(rate(cenote_consistency_violations_total{_RATE}))", "late"),)),
    Panel("Rows and writes per second", "wps", (
        ("max(cenote_flush_rate)", "flushed"), (f"sum(rate(cenote_writes_total{_RATE}))", "written"),
    )),
    Panel("A flush takes", "s", (
        (f"sum(rate(cenote_flush_duration_seconds_sum{_RATE})) / sum(rate(cenote_flush_duration_seconds_count{_RATE}))",
         "mean"),
    )),
    Panel("Rows of a flush", "short", (
        (f"sum(rate(cenote_flush_batch_size_sum{_RATE})) / sum(rate(cenote_flush_batch_size_count{_RATE}))", "mean"),
    )),
    Panel("Flush errors per second", "eps", (
        (f"sum by (error) (rate(cenote_flush_errors_total{_RATE}))", "{{error}}"),
    )),
    Panel("Reads per second, by tier", "rps", (
        (f"sum by (tier) (rate(cenote_cache_requests_total{_RATE}))", "{{tier}}"),
    )),
    Panel("NATS in use", "percentunit", (
        ("max(cenote_kv_fill_ratio)", "of kv.bytes_max"),
        ("max(cenote_dirty_keys) / min(cenote_backlog_limit)", "of flush.backlog_count_max"),
    )),
    Panel("Entries in NATS, rows in PostgreSQL", "short", (
        ("max(cenote_kv_entries)", "entries"), ("max(cenote_sql_rows)", "rows"),
    )),
    Panel("Conflicts per second", "ops", (
        (f"sum by (strategy, outcome) (rate(cenote_conflicts_total{_RATE}))", "{{strategy}} {{outcome}}"),
    )),
    Panel("Connections to PostgreSQL", "short", (
        ("sum(cenote_pool_size)", "open"), ("sum(cenote_pool_idle)", "idle"), ("sum(cenote_pool_waiting)", "waiting"),
    )),
    Panel("Transactions run again per second", "ops", ((f"sum(rate(cenote_tx_retries_total{_RATE}))", "again"),)),
    Panel("Evicted and hydrated per second", "ops", (
        (f"max(rate(cenote_evicted_total{_RATE}))", "evicted"),
        (f"sum(rate(cenote_hydrations_total{_RATE}))", "hydrated"),
    )),
    Panel("Dead letters, differences", "short", (
        ("max(cenote_dead_letters)", "dead letters"),
        ("sum by (kind) (cenote_repair_differences_total)", "{{kind}}"),
    )),
)  # fmt: skip
"""What `cenote grafana` prints."""

_WIDTH, _HEIGHT, _ACROSS = 8, 7, 3


def document() -> dict[str, Any]:
    """The dashboard as Grafana imports it; it asks for the data source."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    panels = [
        {
            "id": number + 1, "type": "timeseries", "title": panel.title, "datasource": source,
            "gridPos": {
                "x": number % _ACROSS * _WIDTH, "y": number // _ACROSS * _HEIGHT, "w": _WIDTH, "h": _HEIGHT,
            },
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(65 + place), "expr": expr, "legendFormat": legend, "datasource": source}
                for place, (expr, legend) in enumerate(panel.queries)
            ],
        }
        for number, panel in enumerate(PANELS)
    ]  # fmt: skip
    variable = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "uid": "cenote", "title": "cenote", "tags": ["cenote"], "schemaVersion": 39, "version": 1, "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"}, "templating": {"list": [variable]}, "panels": panels,
    }  # fmt: skip
