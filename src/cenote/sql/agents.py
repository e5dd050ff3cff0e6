"""`agents.registry`: names of agents, beside the flush and never in its way (I13; flow rule 23)."""

from collections.abc import Iterable
from uuid import UUID

from cenote.sql.pool import Database
from cenote.sql.rows import AgentRow


class AgentTable:
    """The registry."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def register(self, agents: Iterable[tuple[UUID, str]]) -> int:
        """Register those (id, SQL-escaped name) pairs that are not yet; how many were new.

        Call it after the flush has committed: it is a transaction of its own. Two processes insert in one
        order, so they cannot deadlock; a name or id that somebody else's row already has is left alone, not
        an error.
        """
        ordered = sorted(agents, key=lambda pair: pair[0].int)
        tag = await self.db.execute(
            self.db.queries["register"], [agent_id for agent_id, _ in ordered], [name for _, name in ordered]
        )
        return int(tag.rpartition(" ")[2])

    async def agents_page(self, after: UUID | None, limit: int) -> list[AgentRow]:
        """The next registered agents by id; `after` is the last id of the page before, None begins."""
        rows = await self.db.fetch(self.db.queries["agents_page"], after or UUID(int=0), limit)
        return [AgentRow(*row) for row in rows]
