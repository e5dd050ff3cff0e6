"""What is added to the queue: checked, and compared with what is there already."""

from collections.abc import Sequence
from uuid import UUID

from cenote import limits
from cenote.engine.core import Core
from cenote.errors import AlreadyExistsError, OutcomeUnknownError, RejectedError
from cenote.repositories.tasks_asking import Asking
from cenote.repositories.tasks_entity import NewTask, Task, fresh, incoming, same, size, task
from cenote.sql.tasks import NewRow, TaskRow, TaskTable, Times
from cenote.sql.transaction import Transaction


class Intake:
    """The way into the queue."""

    def __init__(self, core: Core, table: TaskTable, asking: Asking) -> None:
        self._core = core
        self._table = table
        self._asking = asking

    def rows(self, given: Sequence[NewTask]) -> Sequence[NewRow]:
        """The rows of what somebody wants to add. RejectedError names the task, the field and its limit."""
        if len(given) > limits.TASKS_BATCH_COUNT_MAX:
            raise RejectedError(f"tasks: {len(given)} of them; up to {limits.TASKS_BATCH_COUNT_MAX} are taken")
        rows, now_ms = list[NewRow](), self._core.now_ms()
        for number, one in enumerate(given):
            try:
                rows.append(incoming(one, self._core.config.tasks.attempts_max, now_ms))
            except RejectedError as error:
                if len(given) > 1:
                    error.args = (f"tasks[{number}].{error.args[0]}",)
                raise
        if len({row.task_id for row in rows}) < len(rows):
            raise RejectedError("tasks: two of them have the same task_id")
        total = sum(map(size, rows))
        if total > limits.TASKS_BATCH_BYTES_MAX:
            raise RejectedError(f"tasks: {total} bytes; up to {limits.TASKS_BATCH_BYTES_MAX} are taken together")
        return rows

    async def put(self, rows: Sequence[NewRow], known: bool, tx: Transaction | None) -> dict[UUID, Times]:
        """Add them; the times of those that were added. `known`: their ids are the caller's, and may have been used; so
        may be all of them after a lost answer."""
        if tx is not None:
            return await self._table.add(rows, known, tx, 0)
        used = known

        async def add(left_ms: float) -> dict[UUID, Times]:
            nonlocal used
            before, used = used, True
            return await self._table.add(rows, before, None, left_ms)

        return await self._asking.surely(add)

    async def stored(self, rows: Sequence[NewRow], tx: Transaction | None) -> dict[UUID, Task]:
        """What stands for tasks that were not added: themselves, or a live one with the same dedupe key."""
        by_id = await self._asking.again(lambda: self._table.by_id([row.task_id for row in rows], tx), tx)
        wanted = [(row.task_type, row.dedupe_key) for row in rows if row.task_id not in by_id and row.dedupe_key]
        by_key = await self._asking.again(lambda: self._table.by_dedupe(wanted, tx), tx) if wanted else {}
        found: dict[UUID, Task] = {}
        for row in rows:
            known = by_id.get(row.task_id) or by_key.get((row.task_type, row.dedupe_key or ""))
            if known is None:
                raise OutcomeUnknownError(
                    f"task_id {row.task_id}: one that stood for it was there, and has been finished meanwhile; or the"
                    " transaction is too old to tell",
                    tier="RELATIONAL_DB", hint="add it again",
                )  # fmt: skip
            found[row.task_id] = stored = task(known)
            wished = fresh(row, _times(known))
            if row.task_id in by_id and not same(stored, wished):
                raise AlreadyExistsError(
                    f"task_id {row.task_id}: another task has it", tier="RELATIONAL_DB",
                    hint="an id names one task: add this one under an id of its own",
                )  # fmt: skip
        return found


def _times(row: TaskRow) -> Times:
    return Times(row.created_at, row.run_at, row.expires_at)
