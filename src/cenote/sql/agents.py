"""`agents.registry`: who the agents are, beside the flush and never in its way (I13; flow rule 23).

The names are registered; what an agent says of itself is repeated here from its entry in the state, which alone is
authoritative.
"""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

from cenote.model import key as keys
from cenote.model.filters import Filter, contained
from cenote.sql.filters import Condition
from cenote.sql.pool import Database
from cenote.sql.rows import AgentRow

_FIND_MS = 10_000  # a search has no business longer


class Registered(NamedTuple):
    """A row of the registry; `name` is SQL-escaped, `version` None for an agent that only wrote state."""

    name: str
    agent_type: str
    status: str
    metadata: str
    raw: bytes | None
    epoch: int | None
    version: int | None
    deleted: bool
    updated_us: int
    seen_us: int | None


def indexed(found: Filter, column: str, *, first: int) -> tuple[str, list[object]]:
    """A filter's condition on a jsonb column, and what a GIN index can narrow it by, with the parameters from `$first`
    on."""
    condition, narrow = Condition(found, column, first=first), contained(found)
    if narrow is None:
        return condition.text, condition.parameters
    place = condition.parameter(json.dumps(narrow), "text")
    return f"{column} @> {place}::jsonb AND {condition.text}", condition.parameters


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

    async def project_profiles(self, names: Sequence[str], timeout_ms: float | None = None) -> int:
        """Repeat in the registry what the state holds of these agents (SQL-escaped names); how many rows have changed.
        Repeatable, in any order."""
        return await self._project("project_profiles", keys.PROFILES.id, names, timeout_ms)

    async def project_heartbeats(self, names: Sequence[str] | None, timeout_ms: float | None = None) -> int:
        """The same for the last signs of life, of these agents or of all."""
        return await self._project("project_heartbeats", keys.HEARTBEATS.id, names, timeout_ms)

    async def _project(self, query: str, agent_id: UUID, names: Sequence[str] | None, timeout_ms: float | None) -> int:
        tag = await self.db.execute(self.db.queries[query], agent_id, names, timeout_ms=timeout_ms)
        return int(tag.rpartition(" ")[2])

    async def stale_profiles(self) -> list[str]:
        """The SQL-escaped names of agents of which the registry does not say what the state holds."""
        rows = await self.db.fetch(self.db.queries["stale_profiles"], keys.PROFILES.id)
        return [row[0] for row in rows]

    async def registered(self, agent_id: UUID) -> Registered | None:
        """One agent's row."""
        row = await self.db.fetchrow(self.db.queries["registered"], agent_id)
        return None if row is None else Registered(*row)

    async def find_agents(
        self, after: str, limit: int, agent_type: str | None, status: str | None, found: Filter
    ) -> list[Registered]:
        """The next rows by name that fit, `found` being of their metadata; `after` is the last SQL-escaped name of the
        page before, "" begins."""
        condition, parameters = indexed(found, "metadata", first=5)
        query = self.db.queries["find_agents"].replace("AND true", f"AND {condition}")
        rows = await self.db.fetch(query, after, limit, agent_type, status, *parameters, timeout_ms=_FIND_MS)
        return [Registered(*row) for row in rows]

    async def names(self, ids: Sequence[UUID]) -> dict[UUID, str]:
        """The SQL-escaped names of those that are registered."""
        return dict(await self.db.fetch(self.db.queries["agent_names"], list(ids)))

    async def agents_page(self, after: UUID | None, limit: int) -> list[AgentRow]:
        """The next registered agents by id; `after` is the last id of the page before, None begins."""
        rows = await self.db.fetch(self.db.queries["agents_page"], after or UUID(int=0), limit)
        return [AgentRow(*row) for row in rows]

    async def agents_of(self, ids: Sequence[UUID]) -> dict[UUID, AgentRow]:
        """The registered ones of these, by id."""
        return {row[0]: AgentRow(*row) for row in await self.db.fetch(self.db.queries["agents_of"], list(ids))}

    async def last_written(self, commits: int, before: tuple[int, UUID], limit: int) -> list[tuple[UUID, int]]:
        """Who was flushed last within so many of the newest commits, the last first: agents with the number of their
        last commit, below the place of a page before. They need not be registered."""
        rows = await self.db.fetch(self.db.queries["last_written"], commits, *before, limit)
        return [(row[0], row[1]) for row in rows]
