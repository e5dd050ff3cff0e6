"""What the flow from KV to SQL says of itself."""

from cenote.engine.machines import Machines
from cenote.engine.monitor import Stats
from cenote.health.verdicts import Check, Verdict
from cenote.model.entry import FORMAT

_SERVE = "start one: cenote serve; or open a store with flush.enabled=true"
_SLOW = "see `cenote status`: is PostgreSQL slow, or does the flusher lack CPU time?"


def consistency(now: Stats, window_ms: float) -> Check:
    """Whether what is acknowledged reaches SQL within the promised time."""
    verdict, reason, hint = _consistency(now, window_ms)
    details = {
        "window_ms": window_ms, "lag_ms_p50": now.lag_ms_p50, "lag_ms_p95": now.lag_ms_p95,
        "lag_ms_p99": now.lag_ms_p99, "dirty_entries": now.dirty_entries, "oldest_dirty_ms": now.oldest_dirty_ms,
        "violations": now.violations, "violations_5m": now.windows["5m"].violations, "flusher": now.flusher,
    }  # fmt: skip
    return Check("consistency", verdict, reason, hint=hint, details=details)


def _consistency(now: Stats, window_ms: float) -> tuple[Verdict, str, str | None]:
    if not now.flusher and now.dirty_entries:
        return Verdict.UNHEALTHY, f"{now.dirty_entries} entries wait and no process flushes", _SERVE
    if now.oldest_dirty_ms > window_ms:
        return Verdict.DEGRADED, f"the oldest unflushed write may be {now.oldest_dirty_ms} ms old", _SLOW
    if now.flusher and now.lag_ms_p95 is not None and now.lag_ms_p95 > window_ms:  # the last word of none is old
        return Verdict.DEGRADED, f"lag p95 {now.lag_ms_p95} ms is above {window_ms} ms", _SLOW
    lag = "nothing was flushed lately" if now.lag_ms_p95 is None else f"lag p95 {now.lag_ms_p95} ms"
    late = now.windows["5m"].violations
    late_text = f", {late} late in the last five minutes" if late else ""
    return Verdict.HEALTHY, f"{lag}, {now.dirty_entries} dirty{late_text}", None


def history(now: Stats) -> list[Check]:
    """What the other checks cannot see: everything runs well, on a database that has lost what it had (flow rule 5)."""
    if not now.sql_commits_lost:
        return []
    reason = (
        f"PostgreSQL went back in time and lost {now.sql_commits_lost} or more commits; what NATS held was written"
        " again, what had been evicted by then may be lost: look for it in a backup, and let PostgreSQL fail over to a"
        " synchronous standby only"
    )
    hint = "look in a backup for what NATS had evicted by then"
    return [Check("history", Verdict.DEGRADED, reason, hint=hint, details={"commits_lost": now.sql_commits_lost})]


def formats(machines: Machines, now: Stats) -> Check:
    """Whether everything that waits can be read by who flushes (flow rule 22)."""
    details = {"written": machines.core.format, "readable": FORMAT, "unknown": now.unknown_formats}
    if now.unknown_formats:
        reason = f"{now.unknown_formats} entries need a newer cenote to be flushed"
        return Check(
            "formats", Verdict.DEGRADED, reason, hint="upgrade the process that flushes: pip install --upgrade cenote",
            details=details,
        )  # fmt: skip
    return Check("formats", Verdict.HEALTHY, f"format {machines.core.format} is written", details=details)
