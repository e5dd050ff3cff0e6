"""`tasks.queue`: what is to be done, as PostgreSQL has it. Every time in it is PostgreSQL's."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg

from cenote import limits
from cenote.errors import OutcomeUnknownError, UnavailableError
from cenote.model.filters import Filter, contained
from cenote.sql.errors import FOREIGN, TIER
from cenote.sql.filters import Condition
from cenote.sql.pool import Database
from cenote.sql.transaction import Transaction


class NewRow(NamedTuple):
    """A task on its way; texts SQL-escaped, payload and metadata as jsonb's text and the exact bytes beside it."""

    task_id: UUID
    task_type: str
    payload: str | None
    raw: bytes | None
    metadata: str | None
    metadata_raw: bytes | None
    priority: int
    attempts_max: int
    dedupe_key: str | None
    run_at: datetime | None
    delay: timedelta
    expires_in: timedelta | None


class TaskRow(NamedTuple):
    """A task as it stands in the queue."""

    task_id: UUID
    task_type: str
    payload: str | None
    raw: bytes | None
    metadata: str | None
    metadata_raw: bytes | None
    status: str
    priority: int
    attempts: int
    attempts_max: int
    created_at: datetime
    run_at: datetime
    expires_at: datetime | None
    lease_until: datetime | None
    token: UUID | None
    worker: str | None
    dedupe_key: str | None
    last_error: str | None
    result: str | None
    result_raw: bytes | None
    finished_at: datetime | None


class Claimed(NamedTuple):
    """What a worker does not know of a task that he has just claimed. Without a lease it was given up instead, for its
    age or its attempts: it is no work."""

    created_at: datetime
    run_at: datetime
    lease_until: datetime | None
    task_id: UUID
    task_type: str
    payload: str | None
    raw: bytes | None
    metadata: str | None
    metadata_raw: bytes | None
    priority: int
    attempts: int
    attempts_max: int
    expires_at: datetime | None
    dedupe_key: str | None
    last_error: str | None


_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_ADDING_MAX: Final = timedelta(seconds=limits.TASKS_ARCHIVE_AFTER_S / 2)
_URGENT: Final = attrgetter("run_at", "task_id")


class Times(NamedTuple):
    """When a task was added, when it is due, and when it is too late."""

    created_at: datetime
    run_at: datetime
    expires_at: datetime | None


class _Moments(dict[bytes | None, datetime | None]):
    """Times by their eight bytes (`timestamptz_send`: µs since 2000). Most of a claim are the same, and each is made
    once."""

    def __missing__(self, sent: bytes | None) -> datetime | None:
        at = None if sent is None else _EPOCH + timedelta(microseconds=int.from_bytes(sent, signed=True))
        self[sent] = at
        return at


class TaskTable:
    """What the engine asks of SQL about tasks. What changes something raises OutcomeUnknownError when its answer was
    lost, UnavailableError when nothing has happened; each is repeatable."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def add(
        self, rows: Sequence[NewRow], known: bool, tx: Transaction | None, timeout_ms: float
    ) -> dict[UUID, Times]:
        """Add tasks; the times of those that were not there before. `known`: their ids may have been used."""
        columns = map(list, zip(*rows, strict=True))
        found = await self._told("add_tasks", tx, timeout_ms, *columns, known, _ADDING_MAX)
        return {row[0]: Times(row[1], row[2], row[3]) for row in found}

    async def claim(
        self, types: Sequence[str], limit: int, token: UUID, worker: str, lease: timedelta, timeout_ms: float
    ) -> list[Claimed]:
        """Take work, the most urgent first."""
        found = await self._told("claim_tasks", None, timeout_ms, types, limit, token, worker, lease)
        rows = _claimed(found)
        if len(rows) > 1:
            rows.sort(key=_URGENT)
            if len({row.priority for row in rows}) > 1:
                rows.sort(key=lambda row: -row.priority)
        return rows

    async def claimed(self, types: Sequence[str], token: UUID) -> list[Claimed]:
        """What a claim took whose answer was lost."""
        return _claimed(await self.db.fetch(self.db.queries["claimed_tasks"], types, token))

    async def extend(self, ids: Sequence[UUID], token: UUID, lease: timedelta) -> dict[UUID, datetime]:
        """Prolong leases; those that are held still, and until when."""
        rows = await self.db.fetch(self.db.queries["extend_leases"], ids, token, lease)
        return {row[0]: row[1] for row in rows}

    async def complete(
        self,
        ids: Sequence[UUID],
        token: UUID,
        result: tuple[str | None, bytes | None],
        tx: Transaction | None,
        timeout_ms: float,
    ) -> tuple[int, datetime]:
        """Finish tasks; how many of them were held, and when it was."""
        ((count, at),) = await self._told("complete_tasks", tx, timeout_ms, ids, token, *result)
        return count, at

    async def fail(
        self, ids: Sequence[UUID], token: UUID, error: str, retry: bool, delay: timedelta, timeout_ms: float
    ) -> list[TaskRow]:
        """Give tasks up, for now or for good; those that were held."""
        rows = await self._told("fail_tasks", None, timeout_ms, ids, token, error, retry, delay)
        return [TaskRow(*row) for row in rows]

    async def release(self, ids: Sequence[UUID], token: UUID) -> None:
        """Give tasks back that were not begun."""
        await self.db.execute(self.db.queries["release_tasks"], ids, token)

    async def by_id(self, ids: Sequence[UUID], tx: Transaction | None = None) -> dict[UUID, TaskRow]:
        """Those of these that are there."""
        rows = await (tx or self.db).fetch(self.db.queries["tasks_by_id"], ids)
        return {row[0]: TaskRow(*row) for row in rows}

    async def by_dedupe(
        self, wanted: Sequence[tuple[str, str]], tx: Transaction | None = None
    ) -> dict[tuple[str, str], TaskRow]:
        """Live tasks by type and dedupe key."""
        types, names = [one[0] for one in wanted], [one[1] for one in wanted]
        rows = [TaskRow(*row) for row in await (tx or self.db).fetch(self.db.queries["tasks_by_dedupe"], types, names)]
        return {(row.task_type, row.dedupe_key or ""): row for row in rows}

    async def cancel(self, task_id: UUID) -> TaskRow | None:
        """Cancel a live task; None: there is none."""
        return await self._one("cancel_task", task_id)

    async def replay(self, task_id: UUID) -> TaskRow | None:
        """Begin a given up task anew; None: there is none."""
        return await self._one("replay_task", task_id)

    async def page(
        self, after: UUID, limit: int, status: str | None, task_type: str | None, found: Filter
    ) -> list[TaskRow]:
        """The next tasks by id, `found` being of their payload."""
        condition = Condition(found, "payload", first=5)
        text, narrow = condition.text, contained(found)
        if narrow is not None:
            text = f"payload @> {condition.parameter(json.dumps(narrow), 'text')}::jsonb AND {text}"
        query = self.db.queries["list_tasks"].replace("AND true", f"AND {text}")
        rows = await self.db.fetch(query, after, limit, status, task_type, *condition.parameters)
        return [TaskRow(*row) for row in rows]

    async def counts(self, task_type: str | None) -> dict[str, int]:
        """How many there are in each state, where there are any."""
        return dict(await self.db.fetch(self.db.queries["count_tasks"], task_type))

    async def expire(self, limit: int) -> int:
        """Expire some of those that are too late; how many."""
        tag = await self.db.execute(self.db.queries["expire_tasks"], limit)
        return int(tag.rpartition(" ")[2])

    async def archive(self, limit: int, age: timedelta) -> int:
        """Move some of those that were finished so long ago from the queue to the archive; how many."""
        tag = await self.db.execute(self.db.queries["archive_tasks"], limit, age)
        return int(tag.rpartition(" ")[2])

    async def forget(self, limit: int, age: timedelta) -> int:
        """Remove some of those that were finished so long ago; the most of a table."""
        found = [await self.db.execute(self.db.queries[one], limit, age) for one in ("forget_tasks", "forget_archived")]
        return max(int(tag.rpartition(" ")[2]) for tag in found)

    async def _one(self, query: str, task_id: UUID) -> TaskRow | None:
        row = await self.db.fetchrow(self.db.queries[query], task_id)
        return None if row is None else TaskRow(*row)

    async def _told(
        self, name: str, tx: Transaction | None, timeout_ms: float, *arguments: object
    ) -> list[asyncpg.Record]:
        """Run a statement that changes something, and say what a failure means."""
        query = self.db.queries[name]
        if tx is not None:
            return await tx.fetch(query, *arguments)
        async with self.db.lent(timeout_ms=timeout_ms) as con:
            try:
                rows: list[asyncpg.Record] = await con.fetch(query, *arguments)
            except FOREIGN as error:
                mapped = await self.db.mapped(error)
                if isinstance(mapped, UnavailableError):
                    raise OutcomeUnknownError(
                        f"the answer of PostgreSQL was lost, it may or may not have happened: {mapped.args[0]}",
                        tier=TIER,
                    ) from error
                raise mapped from error
        return rows


def _claimed(rows: Sequence[asyncpg.Record]) -> list[Claimed]:
    at: Any = _Moments()
    return [Claimed(at[created], at[run], at[until], *rest) for created, run, until, *rest in rows]
