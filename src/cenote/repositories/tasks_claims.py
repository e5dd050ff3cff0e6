"""Tasks in the hands of a worker: claimed under a token, and finished by whoever shows it."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from cenote.errors import ConflictError, OutcomeUnknownError, RejectedError, UnavailableError
from cenote.repositories.tasks_asking import Asking
from cenote.repositories.tasks_entity import Task, held
from cenote.sql.tasks import Claimed, TaskTable
from cenote.sql.transaction import Transaction


class Claims:
    """What changes hands."""

    def __init__(self, table: TaskTable, asking: Asking) -> None:
        self._table = table
        self._asking = asking

    async def take(self, types: Sequence[str], limit: int, worker: str, lease: timedelta) -> Sequence[Task]:
        """Claim tasks until there are some or nothing is due: what was given up on the way is no work. Of a claim whose
        answer was lost it is looked what it took."""
        while True:
            token = uuid4()
            rows = await self._taken(types, limit, token, worker, lease)
            running = [row for row in rows if row.lease_until is not None]
            if running or not rows:
                return held(running, token, worker)

    async def _taken(
        self, types: Sequence[str], limit: int, token: UUID, worker: str, lease: timedelta
    ) -> Sequence[Claimed]:
        doubt = False

        async def claim(left_ms: float) -> Sequence[Claimed]:
            nonlocal doubt
            known = await self._table.claimed(types, token) if doubt else []
            doubt = True
            return known or await self._table.claim(types, limit, token, worker, lease, left_ms)

        try:
            return await self._asking.surely(claim)
        except OutcomeUnknownError as error:  # nobody has begun anything: what it took comes again by its lease
            raise UnavailableError(error.args[0], tier=error.tier) from error

    async def complete(
        self, ids: Sequence[UUID], token: UUID, text: tuple[str | None, bytes | None], tx: Transaction | None
    ) -> dict[UUID, datetime]:
        """Finish tasks of one claim; when those that were held were finished."""
        if tx is None:
            count, at = await self._asking.surely(lambda ms: self._table.complete(ids, token, text, None, ms))
        else:
            count, at = await self._table.complete(ids, token, text, tx, 0)
        if count == len(ids):
            return dict.fromkeys(ids, at)
        stored = await self._asking.again(lambda: self._table.by_id(ids, tx), tx)
        return {
            row.task_id: row.finished_at
            for row in stored.values()
            if row.status == "done" and row.token == token and row.finished_at is not None
        }


def listed(tasks: object) -> Sequence[Task]:
    """One task or several. RejectedError for anything else."""
    given = [tasks] if isinstance(tasks, Task) else tasks
    if not isinstance(given, list | tuple) or not given or not all(isinstance(one, Task) for one in given):
        raise RejectedError("task: a Task that was claimed is needed, or a list of them")
    return given


def by_claim(tasks: Sequence[Task]) -> dict[UUID, list[UUID]]:
    """Ids by the claim that took them."""
    found: dict[UUID, list[UUID]] = {}
    last: UUID | None = None
    ids: list[UUID] = []
    for one in tasks:
        if one.token is not last or last is None:  # those of a claim share theirs: it is hashed once
            last = one.token
            if last is None:
                raise RejectedError(f"task {one.id}: it was not claimed", hint="take it from `claim` or `work`")
            ids = found.setdefault(last, [])
        ids.append(one.id)
    return found


def demand_all(given: Sequence[Task], done: Mapping[UUID, object]) -> None:
    """ConflictError unless all of them are among what is done."""
    lost = [one.id for one in given if one.id not in done]
    if lost:
        more = f" and {len(lost) - 1} others" if len(lost) > 1 else ""
        raise ConflictError(
            f"task {lost[0]}{more}: not yours any more", tier="RELATIONAL_DB",
            hint="the lease ran out, or the task was cancelled: whoever holds it now will do it",
        )  # fmt: skip
