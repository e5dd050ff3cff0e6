"""Verdicts with reasons: do both servers answer, and is the consistency window kept?"""

from dataclasses import dataclass
from enum import Enum

from cenote.engine.machines import Machines
from cenote.engine.monitor import Stats, round_trip_ms, stats
from cenote.errors import CenoteError


class Verdict(Enum):
    """How a part, or the whole, is doing."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Check:
    """One part: its verdict, the measured time in ms where there is one, and the reason in words."""

    name: str
    verdict: Verdict
    reason: str
    latency_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """The worst of its checks, and the checks."""

    verdict: Verdict
    checks: tuple[Check, ...]

    def __str__(self) -> str:
        parts = [f"{check.name}: {check.verdict.value} ({check.reason})" for check in self.checks]
        return f"{self.verdict.value} — " + "; ".join(parts)


_ORDER = [Verdict.HEALTHY, Verdict.DEGRADED, Verdict.UNHEALTHY]


async def health(machines: Machines) -> Health:
    """Ask both servers and the flusher's board. Never raises for a server that is away: that is the answer."""
    kv, sql = await round_trip_ms(machines)
    checks = [_kv(kv), _sql(sql, machines.core.config.health.sql_ms_max)]
    if not isinstance(kv, CenoteError):
        try:
            now = await stats(machines)
            checks += [_consistency(now, machines.core.config.flush.window_ms), *_history(now)]
        except CenoteError as error:
            checks.append(Check("consistency", Verdict.UNHEALTHY, str(error)))
    worst = max((check.verdict for check in checks), key=_ORDER.index)
    return Health(worst, tuple(checks))


def _kv(answer: float | CenoteError) -> Check:
    if isinstance(answer, CenoteError):
        return Check("jetstream", Verdict.UNHEALTHY, str(answer))
    return Check("jetstream", Verdict.HEALTHY, f"answered in {answer:.1f} ms", round(answer, 3))


def _sql(answer: float | CenoteError, ms_max: float) -> Check:
    if isinstance(answer, CenoteError):
        return Check("postgresql", Verdict.UNHEALTHY, str(answer))
    verdict = Verdict.HEALTHY if answer < ms_max else Verdict.DEGRADED
    return Check("postgresql", verdict, f"answered in {answer:.1f} ms", round(answer, 3))


def _consistency(now: Stats, window_ms: float) -> Check:
    name = "consistency"
    if not now.flusher and now.dirty_entries:
        reason = f"{now.dirty_entries} entries wait and no process flushes"
        return Check(name, Verdict.UNHEALTHY, reason)
    if now.unknown_formats:
        return Check(name, Verdict.DEGRADED, f"{now.unknown_formats} entries need a newer cenote to be flushed")
    if now.oldest_dirty_ms > window_ms:
        reason = f"the oldest unflushed write may be {now.oldest_dirty_ms} ms old"
        return Check(name, Verdict.DEGRADED, reason)
    if now.flusher and now.lag_ms_p95 is not None and now.lag_ms_p95 > window_ms:  # the last word of none is old
        return Check(name, Verdict.DEGRADED, f"lag p95 {now.lag_ms_p95} ms is above {window_ms} ms")
    lag = "nothing was flushed lately" if now.lag_ms_p95 is None else f"lag p95 {now.lag_ms_p95} ms"
    return Check(name, Verdict.HEALTHY, f"{lag}, {now.dirty_entries} dirty")


def _history(now: Stats) -> list[Check]:
    """What the other checks cannot see: everything runs well, on a database that has lost what it had (flow rule 5)."""
    if not now.sql_commits_lost:
        return []
    reason = (
        f"PostgreSQL went back in time and lost {now.sql_commits_lost} or more commits; what NATS held was written"
        " again, what had been evicted by then may be lost: look for it in a backup, and let PostgreSQL fail over to a"
        " synchronous standby only"
    )
    return [Check("history", Verdict.DEGRADED, reason)]
