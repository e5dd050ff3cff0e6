"""`agents.lifecycle` and its events, as PostgreSQL has them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from cenote.sql.changes import BEFORE_ALL, CommitId
from cenote.sql.pool import Database
from cenote.sql.transaction import Isolation, Transaction, transact

_FENCE_MS: Final = 1_000


class PhaseRow(NamedTuple):
    """What was written down last of an agent. `alive`: whoever works has its lease still."""

    agent_id: UUID
    phase: str
    token: int
    holder: str | None
    alive: bool
    since: datetime


class Candidate(NamedTuple):
    """An agent that nobody works on; `token` 0: nothing was ever written down of it."""

    agent_id: UUID
    name: str
    phase: str
    token: int


class Told(NamedTuple):
    """What was done with an agent; `details` as JSON, `name` SQL-escaped, None where it is not known, or not asked."""

    number: int
    at_us: int
    agent_id: UUID
    name: str | None
    event: str
    phase: str | None
    token: int | None
    holder: str | None
    details: str | None
    at: datetime

    @property
    def id(self) -> CommitId:
        """What names it."""
        return CommitId(self.number, self.at_us)


class LifecycleTable:
    """What the engine asks of SQL about phases."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def begin(
        self, agents: Mapping[UUID, str], event: str, phase: str, holder: str, lease_ms: int
    ) -> dict[UUID, int]:
        """Take the lease of those agents (by id, with their SQL-escaped names) that are free; their tokens."""
        rows = await self.db.fetch(
            self.db.queries["lifecycle_begin"], list(agents), list(agents.values()), event, phase, holder, lease_ms
        )
        return {row[0]: row[1] for row in rows}

    async def renew(self, held: Mapping[UUID, int], lease_ms: int) -> set[UUID]:
        """Those of which the lease is still ours."""
        rows = await self.db.fetch(
            self.db.queries["lifecycle_renew"], list(held), list(held.values()), lease_ms
        )  # fmt: skip
        return {row[0] for row in rows}

    async def end(self, held: Mapping[UUID, int], event: str, phase: str, details: str | None) -> set[UUID]:
        """Give the leases back; those that were still ours."""
        query = self.db.queries["lifecycle_end"]
        rows = await self.db.fetch(query, list(held), list(held.values()), event, phase, details)
        return {row[0] for row in rows}

    async def wake(self, seen: Mapping[UUID, int]) -> None:
        """These, which rested under these tokens, are back."""
        await self.db.execute(self.db.queries["lifecycle_wake"], list(seen), list(seen.values()))

    async def record(self, agent_id: UUID, event: str, details: str | None) -> None:
        """Note an event that needs no lease."""
        await self.db.execute(self.db.queries["lifecycle_record"], agent_id, event, details)

    async def rows(self, agents: Sequence[UUID]) -> dict[UUID, PhaseRow]:
        """What was written down of these."""
        rows = await self.db.fetch(self.db.queries["lifecycle_rows"], list(agents))
        return {row[0]: PhaseRow(*row) for row in rows}

    async def candidates(self, after: UUID, limit: int) -> list[Candidate]:
        """The next registered agents by id that nobody works on."""
        rows = await self.db.fetch(self.db.queries["lifecycle_candidates"], after, limit)
        return [Candidate(*row) for row in rows]

    async def events(self, agent_id: UUID, below: int, limit: int) -> list[Told]:
        """The agent's events below a number, the newest first."""
        rows = await self.db.fetch(self.db.queries["lifecycle_events"], agent_id, below, limit)
        return [Told(*row) for row in rows]

    async def last(self) -> CommitId:
        """The event of the highest number that can be seen."""
        row = await self.db.fetchrow(self.db.queries["lifecycle_last"])
        return BEFORE_ALL if row is None else CommitId(*row)

    async def last_of_all(self) -> CommitId:
        """The same, and none below it is still to come. TransactionError: somebody inserts all the time."""

        async def look(tx: Transaction) -> CommitId:
            await self._fence(tx)
            row = await tx.fetchrow(self.db.queries["lifecycle_last"])
            return BEFORE_ALL if row is None else CommitId(*row)

        return await transact(self.db, look, isolation=Isolation.READ_COMMITTED)

    async def feed(self, after: CommitId, limit: int) -> list[Told] | None:
        """The next events of all agents, none of which can come later than one behind it; None when `after` is no
        longer there, or not the event that it was."""

        async def look(tx: Transaction) -> list[Told]:
            await self._fence(tx)
            return [Told(*row) for row in await tx.fetch(self.db.queries["lifecycle_feed"], after.number, limit + 1)]

        found = await transact(self.db, look, isolation=Isolation.READ_COMMITTED, deadline_ms=_FENCE_MS)
        if after == BEFORE_ALL:
            return found[:limit]
        return found[1:] if found and found[0].id == after else None

    async def _fence(self, tx: Transaction) -> None:
        await tx.execute(self.db.queries["lifecycle_fence_wait"])
        await tx.execute(self.db.queries["lifecycle_fence"])

    async def forget(self, age_s: int, limit: int) -> int:
        """Remove events of this age, so many at most; how many there were."""
        tag = await self.db.execute(self.db.queries["lifecycle_forget"], age_s, limit)
        return int(tag.rpartition(" ")[2])
