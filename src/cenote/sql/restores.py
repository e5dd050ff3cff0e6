"""`agents.restores`, and what else a restore asks of PostgreSQL."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from cenote.errors import AlreadyExistsError
from cenote.model.entry import Version
from cenote.sql.pool import Database


class RestoreRow(NamedTuple):
    """One agent's part of a restore that is not finished."""

    agent_id: UUID
    agent: str
    restore_id: UUID
    checkpoint_id: UUID
    before_id: UUID
    epoch: int
    revision: int
    begun_at: datetime
    renewed_at: datetime


class RestoreTable:
    """What the engine asks of SQL about restores."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(
        self,
        restore_id: UUID,
        agents: Sequence[tuple[UUID, str]],
        checkpoints: Sequence[UUID],
        before: Sequence[UUID],
        moment: Version,
    ) -> bool:
        """Begin one; false when one of these agents has another that is not finished."""
        try:
            rows = await self._db.fetch(
                self._db.queries["restore_add"], [one[0] for one in agents], [one[1] for one in agents], restore_id,
                list(checkpoints), list(before), *moment,
            )  # fmt: skip
        except AlreadyExistsError:
            return False  # it began at the same instant
        return bool(rows)

    async def find(self, agents: Sequence[UUID]) -> list[RestoreRow]:
        """The restores in progress of these agents, with all agents that take part in them."""
        rows = await self._db.fetch(self._db.queries["restore_find"], list(agents))
        return [RestoreRow(*row) for row in rows]

    async def left(self, silent_s: float) -> list[UUID]:
        """Agents whose restore nobody has worked on for so long."""
        return [row[0] for row in await self._db.fetch(self._db.queries["restore_left"], silent_s)]

    async def renew(self, restore_id: UUID) -> bool:
        """Somebody works on it; false once it is done."""
        return bool(await self._db.fetch(self._db.queries["restore_renew"], restore_id))

    async def done(self, restore_id: UUID) -> None:
        """It is finished."""
        await self._db.execute(self._db.queries["restore_done"], restore_id)

    async def floor_above(self, moment: Version) -> bool:
        """Whether deletes that are newer than this may have been forgotten."""
        return bool(await self._db.fetchval(self._db.queries["restore_floor"], *moment))

    async def copy_blob(self, blob_id: UUID, of: UUID, agent_id: UUID, row_key: str) -> bool:
        """Large bytes once more, for another write; false when there are none."""
        return bool(await self._db.fetch(self._db.queries["restore_blob"], blob_id, of, agent_id, row_key))
