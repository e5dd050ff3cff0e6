"""Alert rules for Prometheus: what somebody should be woken for, and where it says what to do."""

import json
from typing import Any, Final, NamedTuple


class Rule(NamedTuple):
    """One alert. `lasts`: how long the expression must hold, as Prometheus spells it."""

    name: str
    expr: str
    lasts: str
    severity: str
    summary: str


RULES: Final = (
    Rule(
        "CenoteUnflushedWritesAreOld", "max(cenote_oldest_dirty_age_seconds) > 5", "1m", "critical",
        "Writes wait for PostgreSQL for longer than 5 s.",
    ),
    Rule(
        "CenoteNobodyFlushes", "max(cenote_flusher_active) == 0 and max(cenote_dirty_keys) > 0", "30s", "critical",
        "Writes wait, and no process flushes.",
    ),
    Rule(
        "CenoteBacklogNearItsLimit", "max(cenote_dirty_keys) / min(cenote_backlog_limit) > 0.8", "1m", "critical",
        "Most of flush.backlog_count_max is used: soon writes are refused.",
    ),
    Rule(
        "CenoteKvNearlyFull", "max(cenote_kv_fill_ratio) > 0.85", "5m", "critical",
        "Most of kv.bytes_max is used: soon writes are refused.",
    ),
    Rule(
        "CenoteNatsIsAway", 'max(cenote_health{check="jetstream"}) == 2', "30s", "critical",
        "NATS does not answer: writes are refused.",
    ),
    Rule(
        "CenotePostgresqlIsAway", 'max(cenote_health{check="postgresql"}) == 2', "1m", "critical",
        "PostgreSQL does not answer: writes are safe in NATS, and wait.",
    ),
    Rule(
        "CenotePostgresqlWentBack", "max(cenote_sql_commits_lost_total) > 0", "0s", "critical",
        "PostgreSQL has lost commits that it had confirmed.",
    ),
    Rule(
        "CenoteSchemaDoesNotFit", 'max(cenote_health{check="schema"}) > 0', "5m", "warning",
        "Migrations are missing, or the schema does not fit.",
    ),
    Rule(
        "CenoteLagIsHigh",
        'max(cenote_consistency_lag_window_seconds{window="1m",quantile="0.95"})'
        " > max(cenote_consistency_window_seconds)",
        "5m", "warning", "One write in twenty takes longer than the consistency window.",
    ),
    Rule(
        "CenoteWritesAreLate",
        "max(rate(cenote_consistency_violations_total[5m])) / max(rate(cenote_flushed_rows_total[5m])) > 0.01",
        "10m", "warning", "More than one write in a hundred takes longer than the consistency window.",
    ),
    Rule(
        "CenoteFlushesFail", "sum(rate(cenote_flush_errors_total[5m])) > 0", "5m", "warning",
        "Flushes meet errors again and again.",
    ),
    Rule(
        "CenoteDeadLetters", "max(cenote_dead_letters) > 0", "0s", "warning",
        "PostgreSQL has refused writes; somebody has to decide.",
    ),
    Rule(
        "CenoteDifferencesAreLeft", "sum(cenote_repair_differences_total) - sum(cenote_repairs_total) > 0", "0s",
        "warning", "A repair has found differences that it could not mend.",
    ),
    Rule(
        "CenotePoolIsExhausted",
        "max(cenote_pool_wait_seconds) > 1 or sum(rate(cenote_pool_acquire_timeouts_total[5m])) > 0",
        "1m", "warning", "Calls wait for a connection to PostgreSQL.",
    ),
)  # fmt: skip
"""What `cenote alerts` prints."""


def document() -> dict[str, Any]:
    """A rules file of Prometheus."""
    rules = [
        {
            "alert": rule.name, "expr": rule.expr, "for": rule.lasts, "labels": {"severity": rule.severity},
            "annotations": {"summary": rule.summary, "runbook": f"cenote explain {rule.name}"},
        }
        for rule in RULES
    ]  # fmt: skip
    return {"groups": [{"name": "cenote", "rules": rules}]}


def yaml() -> str:
    """The same as YAML, of which JSON's strings are a part."""
    lines = ["groups:", "  - name: cenote", "    rules:"]
    for rule in document()["groups"][0]["rules"]:
        lines.append(f"      - alert: {rule['alert']}")
        lines += [f"        {name}: {json.dumps(rule[name])}" for name in ("expr", "for")]
        for name in ("labels", "annotations"):
            lines.append(f"        {name}:")
            lines += [f"          {one}: {json.dumps(text)}" for one, text in rule[name].items()]
    return "\n".join(lines) + "\n"
