"""`agents.forks`: agents whose values are still those of a checkpoint of another agent."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from cenote.sql.pool import Database
from cenote.sql.rows import Row


class ForkRow(NamedTuple):
    """A fork that is still to be copied, and when its checkpoint was cut."""

    agent_id: UUID
    source_id: UUID
    checkpoint_id: UUID
    seq: int
    revision: int
    cut_us: int


class ForkTable:
    """What the engine asks of SQL about forks."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, agent_id: UUID, source_id: UUID, checkpoint_id: UUID) -> bool:
        """Begin an agent as a checkpoint; false when there is no such checkpoint, or the agent has been seen before."""
        return await self._db.fetchval(self._db.queries["fork_add"], agent_id, source_id, checkpoint_id) is not None

    async def pending(self, agent_id: UUID | None) -> list[ForkRow]:
        """What is still to be copied, of one agent or of all."""
        return [ForkRow(*row) for row in await self._db.fetch(self._db.queries["forks"], agent_id)]

    async def copy(self, fork: ForkRow, rows: Sequence[Row]) -> bool:
        """Copy some rows, where nobody has written the key; false when all has been copied already."""
        ordered = sorted(rows, key=lambda row: row.key)  # one order for all who write rows
        columns = [
            [getattr(row, name) for row in ordered] for name in ("key", "value", "raw", "quarantined", "expires_us")
        ]
        query = self._db.queries["fork_copy"]
        place = (fork.revision, fork.cut_us)
        return bool(await self._db.fetchval(query, fork.agent_id, fork.checkpoint_id, *columns, *place))

    async def done(self, fork: ForkRow) -> None:
        """All of it is there."""
        await self._db.execute(self._db.queries["fork_done"], fork.agent_id, fork.checkpoint_id)
