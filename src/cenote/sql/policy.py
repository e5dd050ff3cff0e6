"""`agents.checkpoint_due`: which agents the settings want a checkpoint of."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from cenote.sql.pool import Database


class Due(NamedTuple):
    """An agent that is due. `name` is SQL-escaped; `looked_at`: PostgreSQL's time."""

    agent_id: UUID
    name: str
    writes: int
    looked_at: datetime


class DueTable:
    """What the engine asks of SQL about it."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def begin(self) -> None:
        """Count from the oldest flush that is kept, unless counting has begun already."""
        await self._db.execute(self._db.queries["due_begin"])

    async def count(self, commits: int, without: Sequence[UUID]) -> int:
        """Count what the next commits of flushes have changed; how many commits there were."""
        return int(await self._db.fetchval(self._db.queries["due_count"], commits, list(without)))

    async def claim(self, writes: int | None, age_s: float | None, limit: int, for_s: float) -> list[Due]:
        """Take those that have changed so often, or so long ago; nobody else does for a while."""
        rows = await self._db.fetch(self._db.queries["due_claim"], writes, age_s, limit, for_s)
        return [Due(*row) for row in rows]

    async def done(self, due: Due) -> None:
        """What had changed is kept."""
        left = await self._db.fetchval(self._db.queries["due_done"], due.agent_id, due.writes, due.looked_at)
        if left == 0:
            await self._db.execute(self._db.queries["due_over"], due.agent_id)
