"""`agents.flush_log`: which rows each flush changed, in the order of the commits (flow rules 5, 25).

A commit takes its number under a lock that it keeps until it is over: numbers have no gaps, and below one that can be
read none is still to come. A number and its time together name a commit: a database that goes back gives the number
again, at another time.
"""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from cenote.sql.pool import Database
from cenote.sql.rows import Row


class CommitId(NamedTuple):
    """One commit of a flush; (0, 0) is before the first."""

    number: int
    committed_us: int  # PostgreSQL's clock


class Commit(NamedTuple):
    """What one flush changed; keys are SQL-escaped."""

    number: int
    committed_us: int
    agent_ids: Sequence[UUID]
    keys: Sequence[str]

    @property
    def id(self) -> CommitId:
        """What names it."""
        return CommitId(self.number, self.committed_us)


BEFORE_ALL = CommitId(0, 0)


class ChangeTable:
    """The log of commits."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def head(self) -> CommitId:
        """The last commit that changed a row."""
        row = await self.db.fetchrow(self.db.queries["flush_head"])
        return BEFORE_ALL if row is None else CommitId(*row)

    async def commits(self, after: CommitId | None, limit: int) -> list[Commit] | None:
        """The next commits, or, without `after`, the oldest that are kept; None when `after` is no longer there, or not
        the commit that it was: what came between cannot be told any more."""
        number = 0 if after is None else after.number
        found = [Commit(*row) for row in await self.db.fetch(self.db.queries["flushes"], number, limit + 1)]
        if after is None:
            return found
        if after == BEFORE_ALL:
            return found if not found or found[0].number == 1 else None
        return found[1:] if found and found[0].id == after else None

    async def changed(self, pairs: Sequence[tuple[UUID, str]]) -> dict[tuple[UUID, str], tuple[str | None, Row | None]]:
        """What SQL holds now of these (agent, key) pairs: the agent's SQL-escaped name, if registered, and the row,
        if there is one."""
        rows = await self.db.fetch(
            self.db.queries["changed_rows"], [agent_id for agent_id, _ in pairs], [key for _, key in pairs]
        )
        return {(row["a"], row["k"]): (row[0], None if row["key"] is None else Row(*row[3:])) for row in rows}

    async def prune(self, age_s: float, limit: int) -> int:
        """Remove commits older than this, of the oldest `limit`; how many were removed."""
        told = await self.db.execute(self.db.queries["prune_flushes"], age_s, limit)
        return int(told.rpartition(" ")[2])
