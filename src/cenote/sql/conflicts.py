"""The conflict log as SQL has it: live rows of one reserved agent, whose keys sort by time."""

from typing import Final
from uuid import UUID

from cenote import limits
from cenote.sql.pool import Database
from cenote.sql.rows import Row

_ABOVE_ALL: Final = "\U0010ffff"


class ConflictTable:
    """Looks at the rows of one agent, `agent_id`; `now_us`: what counts as expired."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def conflicts_before(self, agent_id: UUID, before: str | None, limit: int, now_us: int) -> list[Row]:
        """The next rows, the newest first; `before`: the last key of the page before, None begins. `[]` alone says that
        there are no more."""
        query = self.db.queries["conflicts_before"]
        rows = await self.db.fetch(query, agent_id, before or _ABOVE_ALL, now_us, limit, limits.PAGE_BYTES_MAX)
        return [Row(*row) for row in rows]

    async def count_conflicts(self, agent_id: UUID, now_us: int) -> int:
        """How many there are."""
        return int(await self.db.fetchval(self.db.queries["conflicts_count"], agent_id, now_us))

    async def oldest_conflicts(self, agent_id: UUID, after: str, limit: int, now_us: int) -> list[str]:
        """The next keys, the oldest first."""
        rows = await self.db.fetch(self.db.queries["conflicts_oldest"], agent_id, after, now_us, limit)
        return [row[0] for row in rows]
