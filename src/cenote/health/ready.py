"""Whether a process should be sent work: KV takes writes, and what waits for SQL is far from its bound."""

import asyncio

from cenote import limits
from cenote.engine import monitor
from cenote.engine.machines import Machines
from cenote.errors import CenoteError, UnavailableError
from cenote.health.verdicts import Readiness

_ANSWER_S = 1.0  # who asks does so each few seconds, and takes silence for a no


async def ready(machines: Machines) -> Readiness:
    """Without SQL a process is ready, for KV keeps what waits; until so much waits that writes will be refused.
    Without KV it is not."""
    core = machines.core
    kv, sql = await asyncio.gather(_kv(machines), monitor.answers_in(lambda: core.db.fetchval("SELECT 1"), _ANSWER_S))
    parts, reasons = {}, []
    if kv is not None:
        parts["jetstream"] = (False, str(kv))
        reasons.append(f"NATS does not take writes: {kv}")
    else:
        parts["jetstream"] = (True, "answers")
    behind = None
    if isinstance(sql, CenoteError):
        behind = f"PostgreSQL does not answer: {sql}"
        parts["postgresql"] = (True, f"{sql}; writes wait in NATS")
    else:
        parts["postgresql"] = (True, f"answered in {sql:.1f} ms")
        if kv is None and core.fullness.backlog and not await _flushing(machines):
            behind = f"{core.fullness.backlog} writes wait and no process flushes"
    if behind:
        reasons.append(behind)
    near = _near(machines)
    fits = not (near and behind)
    parts["backlog"] = (fits, near or f"{core.fullness.backlog} writes wait, KV is {core.fullness.share:.0%} full")
    if near:
        reasons.append(near)
    return Readiness(kv is None and fits, bool(reasons), tuple(reasons), parts)


async def _kv(machines: Machines) -> CenoteError | None:
    core = machines.core
    if not core.link.connected:
        return UnavailableError("not connected to NATS", tier="DISTRIBUTED_KV")
    try:
        async with asyncio.timeout(_ANSWER_S):
            await core.probe_once()
    except CenoteError as error:
        return error
    except TimeoutError:
        return UnavailableError(f"no answer within {_ANSWER_S:g} s", tier="DISTRIBUTED_KV")
    return None


async def _flushing(machines: Machines) -> bool:
    try:
        async with asyncio.timeout(_ANSWER_S):
            board = await machines.lease.read()
    except (CenoteError, TimeoutError):
        return False
    return board is not None and board.holder != "" and board.alive(machines.core.now_ms())


def _near(machines: Machines) -> str | None:
    fullness, bound = machines.core.fullness, machines.core.config.flush.backlog_count_max
    if fullness.backlog >= bound * limits.NEAR_PERCENT / 100:
        return f"{fullness.backlog} writes wait; from {bound} on writes are refused"
    if fullness.share * 100 >= limits.NEAR_PERCENT:
        return f"KV is {fullness.share:.0%} full; at 90% writes are refused"
    return None
