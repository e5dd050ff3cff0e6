"""What the servers say: NATS, PostgreSQL, its schema, its connections, what it refused, and the disk below them."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

from cenote import limits
from cenote.engine.fullness import BRIM_SHARE
from cenote.engine.machines import Machines
from cenote.engine.monitor import Stats
from cenote.errors import CenoteError
from cenote.health.verdicts import Check, Verdict
from cenote.sql import migrate

_ANSWER_S = limits.SILENCE_MS_MAX / 1000


def jetstream(machines: Machines, answer: float | CenoteError, now: Stats | CenoteError | None) -> Check:
    """The state bucket: reachable, and with room (flow rule 17)."""
    if isinstance(answer, CenoteError):
        away = answer.hint or "is nats-server up? see `cenote doctor`"
        return Check("jetstream", Verdict.UNHEALTHY, str(answer), hint=away)
    core = machines.core
    config = core.config
    details: dict[str, Any] = {
        "stream": core.stream.name, "ttl_s": config.state.ttl_s, "replicas": core.copies, "bytes_max": core.bytes_max,
        "backlog_max": config.flush.backlog_count_max,
    }  # fmt: skip
    verdict, reason = Verdict.HEALTHY, f"answered in {answer:.1f} ms"
    hint: str | None = None
    if isinstance(now, Stats):
        details |= {
            "entries": now.kv_entries, "bytes": now.kv_bytes, "backlog": now.dirty_entries, "fill": now.kv_fill,
        }  # fmt: skip
        if now.dirty_entries >= config.flush.backlog_count_max * limits.NEAR_PERCENT / 100:
            verdict = Verdict.DEGRADED
            reason = f"{now.dirty_entries} writes wait; from {config.flush.backlog_count_max} on writes are refused"
            hint = "is PostgreSQL up, and does any process flush? see `cenote status`"
        elif now.kv_fill >= BRIM_SHARE:
            verdict, reason = Verdict.DEGRADED, f"the state bucket is {now.kv_fill:.0%} full; at 90% writes are refused"
            hint = "raise kv.bytes_max if this is the normal load"
    return Check("jetstream", verdict, reason, round(answer, 3), hint, details)


def postgresql(machines: Machines, answer: float | CenoteError) -> Check:
    """A round trip of `SELECT 1`."""
    ms_max = machines.core.config.health.sql_ms_max
    details = {"ms_max": ms_max}
    if isinstance(answer, CenoteError):
        away = answer.hint or "is PostgreSQL up? see `cenote doctor`; until then writes wait in NATS"
        return Check("postgresql", Verdict.UNHEALTHY, str(answer), hint=away, details=details)
    slow = answer >= ms_max
    hint = "is it overloaded, or far away? health.sql_ms_max says what is normal" if slow else None
    verdict = Verdict.DEGRADED if slow else Verdict.HEALTHY
    return Check("postgresql", verdict, f"answered in {answer:.1f} ms", round(answer, 3), hint, details)


async def database(machines: Machines) -> list[Check]:
    """What only a PostgreSQL that answers can be asked."""
    checks = [_pool(machines)]
    try:
        async with asyncio.timeout(_ANSWER_S):
            return [*checks, await _schema(machines), await _letters(machines)]
    except CenoteError as error:
        return [*checks, Check("schema", Verdict.UNHEALTHY, str(error), hint=error.hint or "see `cenote doctor`")]
    except TimeoutError:
        return [*checks, Check("schema", Verdict.UNHEALTHY, f"no answer within {_ANSWER_S:g} s")]


async def _schema(machines: Machines) -> Check:
    head, known = await migrate.head(machines.core.db), migrate.known()[-1].number
    details = {"database": head, "known": known}
    if head < known:
        reason = f"the schema is at {head:04}, this cenote knows {known:04}"
        return Check("schema", Verdict.DEGRADED, reason, hint="cenote migrate", details=details)
    newer = f"{head:04}, newer than the {known:04} of this cenote, which may use it" if head > known else f"{head:04}"
    return Check("schema", Verdict.HEALTHY, f"at {newer}", details=details)


async def _letters(machines: Machines) -> Check:
    count = await machines.core.table.count_dead_letters(limits.LETTERS_COUNTED_MAX)
    if not count:
        return Check("dead letters", Verdict.HEALTHY, "none", details={"count": 0})
    many = f"{count} or more" if count == limits.LETTERS_COUNTED_MAX else f"{count}"
    return Check(
        "dead letters", Verdict.DEGRADED, f"{many} writes were refused by PostgreSQL", hint="cenote dead-letters list",
        details={"count": count},
    )  # fmt: skip


def _pool(machines: Machines) -> Check:
    use = machines.core.db.use()
    details = use._asdict()
    if use.waited_ms > limits.POOL_WAIT_MS:
        reason = f"{use.waiting} calls wait for a connection, the first for {use.waited_ms} ms"
        hint = "raise sql.pool_max, or hold transactions shorter"
        return Check("pool", Verdict.DEGRADED, reason, hint=hint, details=details)
    return Check("pool", Verdict.HEALTHY, f"{use.used} of {use.most} connections in use", details=details)


def disk(data_dir: Path) -> Check | None:
    """What is left where embedded servers of this machine keep their data; None where that cannot be seen."""
    try:
        free = shutil.disk_usage(data_dir).free
    except OSError:
        return None
    details = {"path": str(data_dir), "free_bytes": free}
    text = f"{free // limits.MIB:,} MiB free at {data_dir}"
    if free < limits.FREE_BYTES_MIN:
        hint = "make room, or move it: --data-dir DIR; 1 GiB at least"
        return Check("disk", Verdict.DEGRADED, text, hint=hint, details=details)
    return Check("disk", Verdict.HEALTHY, text, details=details)
