"""Who reads KV after a start of its server waits until it has been compared with SQL (I4; flow rule 4, F-wait).

Else an `update` builds on a value that came back although SQL knows it to be old. The comparison is announced in the
stream's metadata, which every process reads at each probe: no further request at a connect, nothing for each call.
Where nobody flushes, whoever waits compares itself: at once where there is nothing to compare, for even then flushes
must be bound to this start of the server before anybody builds on what SQL says (F-inc).
"""

import asyncio
import logging
import time

from cenote import limits, points
from cenote.engine.core import Core
from cenote.engine.epoch import MENDED_KEY
from cenote.engine.incarnation import mended_mark
from cenote.errors import OutcomeUnknownError, UnavailableError

log = logging.getLogger("cenote.engine")

_ASK_S = 0.03


async def announce_mended(core: Core, epoch: int, start: str, generation: int) -> None:
    """Tell every process that KV, over this connection, holds nothing older than SQL."""
    if core.link.generation != generation:
        raise UnavailableError("the connection was replaced before the announcement", tier="DISTRIBUTED_KV")
    if points.armed:
        await points.hit("mend.done")
    await core.stream.update_metadata({MENDED_KEY: mended_mark(epoch, start)})
    if points.armed:
        await points.hit("mend.announced")
    if core.epochs.newest == epoch:
        core.mended, core.announced = generation, True


async def until_mended(core: Core, left_ms: float) -> None:
    """Wait until KV has been compared with SQL since its server started; afterwards `core.mended` is this connection.

    Raises:
        UnavailableError: not within `left_ms`.
    """
    try:
        async with asyncio.timeout(max(0.0, left_ms) / 1000), core.mended_lock:
            volunteering_at = time.monotonic() + limits.LEASE_EXPIRE_MS / 1000
            while core.mended != core.link.generation:
                try:
                    await _ask(core, volunteering=time.monotonic() > volunteering_at)
                except (UnavailableError, OutcomeUnknownError) as error:
                    if core.link.out or (isinstance(error, UnavailableError) and error.lasting):
                        raise
                    log.debug("cannot learn whether KV was compared with SQL: %s", error)
                if core.mended != core.link.generation:
                    await asyncio.sleep(_ASK_S)
    except TimeoutError as error:
        raise UnavailableError(
            "KV may hold old entries: it has not been compared with PostgreSQL since its server started",
            tier="DISTRIBUTED_KV",
            hint="a process that flushes does that: is PostgreSQL up, and does `cenote serve` run?",
        ) from error


async def _ask(core: Core, *, volunteering: bool) -> None:
    generation = core.link.generation
    await core.probe_once()
    if core.mended == generation:
        return
    if core.volunteer is not None and (volunteering or not core.entries):
        await core.volunteer()
