"""Which format of entries writers may use (I17; flow rule 22).

An entry of a format that the flusher cannot read waits, and whoever reads it is refused; so nobody writes a format
before every process of the store reads it. `agents.meta` is authoritative; the stream's metadata repeats it for those
who never talk to PostgreSQL. It is raised by hand, by `cenote migrate`, and never lowered.
"""

from cenote.engine.adoption import Ground
from cenote.engine.epoch import FORMAT_KEY
from cenote.engine.lease import Lease
from cenote.engine.slots import beside
from cenote.errors import SetupError
from cenote.kv.stream import StateStream
from cenote.model import entry


async def raise_format(ground: Ground) -> int | None:
    """Allow the newest format that this code writes; None when it is allowed already.

    Raises:
        SetupError: an active flusher does not read it.
        UnavailableError: one of the servers cannot be reached.
    """
    link, table, config = ground
    allowed = await table.db.fetchval(table.db.queries["format_min_reader"])
    stream = StateStream(link, config.names)
    info = await stream.info()
    if min(allowed, int(info.metadata.get(FORMAT_KEY, 1))) >= entry.FORMAT:
        return None
    board = await Lease(link, config.names, "migrate").read()
    boards = [] if board is None else [board]
    boards += await beside(link, config.names, max(config.flush.active_max, *(one.active_max for one in boards), 1))
    behind = [one for one in boards if one.holder and one.alive(link.server_now_ms()) and one.reads < entry.FORMAT]
    if behind:
        raise SetupError(
            f"entries stay in format {allowed}: the flusher, process {behind[0].pid} on {behind[0].host}, reads formats"
            f" up to {behind[0].reads}, not {entry.FORMAT}",
            hint="upgrade or stop every older process, then again: cenote migrate",
        )
    await table.db.execute(table.db.queries["raise_format"], entry.FORMAT)
    await stream.update_metadata({FORMAT_KEY: str(entry.FORMAT)})
    return entry.FORMAT
