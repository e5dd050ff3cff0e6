"""What a flush may insert beside what has been collected (I2; flow rule 12 with F-gc).

A tombstone that was collected refuses nothing any more, so no flush writes a row up to the floor of collections, and
whoever still holds such an entry, a flusher that slept for a day, asks KV: an entry that is live there under that very
version and time is newer than whatever was collected of its key, so it is written after all, provided that nothing was
collected since before the look. One that is not there was overtaken, and is settled without a row.
"""

from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from cenote.engine import entries
from cenote.engine.core import Core, reading
from cenote.errors import UnavailableError
from cenote.model import key as keys
from cenote.sql.rows import Flushed, GcFloor, Row
from cenote.sql.state import StateTable

Write = Callable[[list[Row], GcFloor | None], Awaitable[Flushed | None]]
"""Writes rows under a guard; given the floor under which they were looked for, those up to it as well."""
Look = Callable[[Row], Awaitable[bool]]
"""Whether KV holds this very entry."""


async def pass_fence(table: StateTable, rows: Sequence[Row], write: Write, look: Look) -> list[Row] | None:
    """Write rows, those up to the floor of collections only where KV or SQL holds their key's entry.

    Returns:
        The rows that were overtaken and not written; None when the guard did not hold.
    """
    overtaken: list[Row] = []
    looked: GcFloor | None = None
    left = list(rows)
    while left:
        outcome = await write(left, looked)
        if outcome is None:
            return None
        floor = outcome.floor
        if looked is not None and looked.round == floor.round:
            break
        left = [row for row in left if (row.epoch, row.version) <= floor[:2]]
        if not left:
            break
        gone = await _gone(table, left, look)
        overtaken += gone
        left = [row for row in left if row not in gone]
        looked = floor
    return overtaken


async def _gone(table: StateTable, rows: list[Row], look: Look) -> list[Row]:
    """Rows whose key SQL does not hold, and whose entry KV does not hold. A key that SQL holds is the fence's."""
    held = await table.versions((row.agent_id, row.key) for row in rows)
    return [row for row in rows if (row.agent_id, row.key) not in held and not await look(row)]


def looker(core: Core, agents: set[keys.AgentRef]) -> Look:
    """Looks at the stream's leader for entries of these agents, over the connection in use."""
    refs: dict[UUID, keys.AgentRef] = {agent.id: agent for agent in agents}
    generation = core.link.generation

    async def look(row: Row) -> bool:
        target = core.target(refs[row.agent_id], keys.from_sql_key(row.key))
        with reading():
            message = await core.leader_message(target)
        if core.link.generation != generation:
            raise UnavailableError("the connection was replaced while an entry was looked for", tier="DISTRIBUTED_KV")
        if message is None:
            return False
        stored = entries.listed(message, core.epochs)  # a clean copy names the sequence and the time of its write
        return stored.version.revision == row.version and stored.written_us == row.kv_time_us

    return look
