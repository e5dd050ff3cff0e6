"""Verdicts with reasons: do both servers answer, is the consistency window kept, and what is about to go wrong?"""

import asyncio
from pathlib import Path

from cenote.engine import monitor
from cenote.engine.machines import Machines
from cenote.errors import CenoteError
from cenote.health import flow, servers
from cenote.health.verdicts import Check as Check
from cenote.health.verdicts import Health as Health
from cenote.health.verdicts import Readiness as Readiness
from cenote.health.verdicts import Verdict as Verdict


async def health(machines: Machines, data_dir: Path | None = None) -> Health:
    """Ask both servers and the flusher's board. Never raises for a server that is away: that is the answer.

    data_dir: where embedded servers of this machine keep their data.
    """
    kv, sql = await monitor.round_trip_ms(machines)
    has_sql = not isinstance(sql, CenoteError)
    found, database = await asyncio.gather(
        _stats(machines, kv, sql=has_sql), servers.database(machines) if has_sql else _nothing()
    )
    checks = [servers.jetstream(machines, kv, found), servers.postgresql(machines, sql)]
    if isinstance(found, monitor.Stats):
        checks += [flow.consistency(found, machines.core.config.flush.window_ms), *flow.history(found)]
        checks.append(flow.formats(machines, found))
    elif found is not None:
        checks.append(Check("consistency", Verdict.UNHEALTHY, str(found), hint=found.hint))
    checks += database
    disk = await asyncio.to_thread(servers.disk, data_dir) if data_dir is not None else None
    return Health.of([*checks, disk] if disk is not None else checks)


async def _stats(machines: Machines, kv: float | CenoteError, *, sql: bool) -> monitor.Stats | CenoteError | None:
    if isinstance(kv, CenoteError):
        return None
    try:
        return await monitor.stats(machines, sql=sql)
    except CenoteError as error:
        return error


async def _nothing() -> list[Check]:
    return []
