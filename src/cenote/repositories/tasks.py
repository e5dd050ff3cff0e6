"""Tasks: what is to be done, once, by one of many workers, whatever dies meanwhile.

PostgreSQL is authoritative; NATS only wakes those who wait. A worker holds a task by a lease and a token: when he is
silent for too long another one takes it, and from then on whatever he says about it is refused.

Of the verbs of a `Repository`, `add` is save, `get` find, `list` list and `cancel` delete; `complete` and `fail` are
the updates.
"""

import os
import random
import socket
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Final, TypeVar
from uuid import UUID

from msgspec.structs import replace

from cenote import limits
from cenote.engine.machines import Machines
from cenote.errors import (
    ConflictError,
    NotFoundError,
    RejectedError,
)
from cenote.model import filters
from cenote.model import key as keys
from cenote.model.page import Cursors, Page, page_limit
from cenote.repositories.tasks_asking import Asking
from cenote.repositories.tasks_bell import Bell
from cenote.repositories.tasks_claims import Claims, by_claim, demand_all, listed
from cenote.repositories.tasks_entity import (
    STATUSES,
    NewTask,
    Task,
    duration,
    error_text,
    fresh,
    identity,
    task,
    type_text,
    worker_text,
)
from cenote.repositories.tasks_intake import Intake
from cenote.repositories.tasks_work import Job, Loop
from cenote.sql.jsonb import encoded
from cenote.sql.tasks import TaskTable
from cenote.sql.transaction import Transaction

T = TypeVar("T")
Seconds = timedelta | float

_GIVEN_UP: Final = ("failed", "cancelled", "expired")
_NO_TASK: Final = "there is no such task"
_dice = random.Random()  # its own: a program that seeds the global one must get what it expects


class Tasks:
    """What is to be done."""

    def __init__(self, machines: Machines) -> None:
        self._core = machines.core
        self._config = machines.core.config.tasks
        self._table = TaskTable(machines.core.db)
        self._bell = Bell(machines.core)
        self._asking = Asking(machines.core)
        self._claims = Claims(self._table, self._asking)
        self._intake = Intake(machines.core, self._table, self._asking)

    async def add(
        self,
        task_type: str,
        payload: object = None,
        *,
        priority: int = 0,
        run_at: datetime | None = None,
        delay: Seconds | None = None,
        expires_in: Seconds | None = None,
        attempts_max: int | None = None,
        dedupe_key: str | None = None,
        metadata: Mapping[str, object] | None = None,
        task_id: UUID | None = None,
        tx: Transaction | None = None,
    ) -> Task:
        """Have something done; on return PostgreSQL has it, and idle workers are told.

        Args:
            task_type: which workers it is for: 1 to 50 characters.
            payload: any value that an agent's key could hold, up to 1 MiB encoded.
            priority: -32,768 to 32,767; higher ones come first.
            run_at, delay: not before this time, or not before so long from now.
            expires_in: not after so long from now: it expires then, unless it has been begun.
            attempts_max: 1 to 1,000 runs; None: `tasks.attempts_max`.
            dedupe_key: while a live task of this type has this key, that one is the answer, and nothing is added.
            metadata: a mapping with string keys, up to 64 KiB encoded.
            task_id: of a task that may have been added already: then this is the stored one, and nothing is added.
            tx: add it with this transaction: it is there when that has been committed.

        Raises:
            RejectedError: a field, with its limit; nothing was added.
            AlreadyExistsError: another task has this id.
            OutcomeUnknownError: the answer was lost; add it again under the same `task_id`.
            UnavailableError: PostgreSQL cannot be reached; nothing was added.
        """
        given: NewTask = {
            "task_type": task_type, "payload": payload, "priority": priority, "run_at": run_at, "delay": delay,
            "expires_in": expires_in, "attempts_max": attempts_max, "dedupe_key": dedupe_key, "metadata": metadata,
            "task_id": task_id,
        }  # fmt: skip
        return (await self.add_many([given], tx=tx))[0]

    async def add_many(self, tasks: Iterable[NewTask], *, tx: Transaction | None = None) -> list[Task]:
        """Add several at once, all or none: at most 10,000 tasks of 8 MiB together.

        Args:
            tasks: mappings with the arguments of `add`.
            tx: as for `add`.

        Raises:
            As `add`, with the place of the task in the list.
        """
        given = list(tasks)
        rows = self._intake.rows(given)
        if not rows:
            return []
        added = await self._intake.put(rows, any(one.get("task_id") for one in given), tx)
        due = {row.task_type for row in rows if row.task_id in added and row.run_at is None and not row.delay}
        self._bell.ring(due, tx)
        missing = [row for row in rows if row.task_id not in added]
        stored = await self._intake.stored(missing, tx) if missing else {}
        return [stored.get(row.task_id) or fresh(row, added[row.task_id]) for row in rows]

    async def claim(
        self, *types: str, limit: int = 1, worker: str | None = None, lease: Seconds | None = None
    ) -> list[Task]:
        """Take up to `limit` tasks that are due, the most urgent first: yours until the lease is over, unless you call
        `heartbeat` before. What another worker lost is taken, too. An empty list: there is nothing to do.

        Args:
            types: what you can do: 1 to 100 types.
            limit: 1 to 1,000.
            worker: what you are called, for those who look; None: host and process.
            lease: None: `tasks.lease_s`.

        Raises:
            RejectedError: an argument cannot be meant.
            UnavailableError: PostgreSQL cannot be reached.
        """
        if not 0 < len(types) <= limits.TASK_TYPES_MAX:
            raise RejectedError(f"types: {len(types)} of them; 1 to {limits.TASK_TYPES_MAX} are needed")
        wanted = sorted({type_text(one) for one in types})
        name = self._worker if worker is None else worker_text(worker)
        until = self._lease(lease)
        page_limit(limit)
        return list(await self._claims.take(wanted, limit, name, until))

    async def heartbeat(self, tasks: Task | Sequence[Task], *, lease: Seconds | None = None) -> list[Task]:
        """Keep claimed tasks for another lease from now; those that are still yours. Whatever is missing is lost:
        somebody else may have it, and your `complete` will be refused."""
        until, kept = self._lease(lease), dict[UUID, datetime]()
        given = listed(tasks)
        for token, ids in by_claim(given).items():
            kept |= await self._asking.again(lambda ids=ids, token=token: self._table.extend(ids, token, until))  # type: ignore[misc]  # mypy does not infer lambdas with defaults
        return [replace(one, lease_until=kept[one.id]) for one in given if one.id in kept]

    async def complete(
        self, tasks: Task | Sequence[Task], result: object = None, *, tx: Transaction | None = None
    ) -> list[Task]:
        """Say that claimed tasks are done. Repeating it is fine.

        Args:
            result: kept with each of them, up to 1 MiB encoded.
            tx: finish them with this transaction: what it writes is there exactly if this worker still held them all.

        Raises:
            ConflictError: some are not yours any more: the lease was over, or they were cancelled. The others are done,
                unless there is a `tx`, which must end now.
            OutcomeUnknownError: the answer was lost; say it again.
            UnavailableError: PostgreSQL cannot be reached; nothing was written.
        """
        given = listed(tasks)
        text = (None, None) if result is None else encoded(result, what="result", bytes_max=limits.TASK_BYTES_MAX)
        done: dict[UUID, datetime] = {}
        for token, ids in by_claim(given).items():
            done |= await self._claims.complete(ids, token, text, tx)
        demand_all(given, done)
        return [replace(one, status="done", lease_until=None, result=result, finished_at=done[one.id]) for one in given]

    async def fail(
        self, given: Task, error: str | BaseException, *, retry: bool = True, delay: Seconds | None = None
    ) -> Task:
        """Say that a claimed task could not be done: it comes again, or is a dead letter after its last attempt.

        Args:
            error: kept as `last_error`, up to 2,000 characters.
            retry: False: a dead letter at once.
            delay: how long until it comes again; None: twice as long after each failure, from `tasks.retry_ms` to
                `tasks.retry_ms_max`, with jitter.

        Raises:
            As `complete`.
        """
        token, ids = next(iter(by_claim(listed(given)).items()))
        words, pause = error_text(error), self._pause(given) if delay is None else duration(delay, "delay")
        rows = await self._asking.surely(lambda ms: self._table.fail(ids, token, words, retry, pause, ms))
        if not rows:
            stored = (await self._asking.again(lambda: self._table.by_id(ids))).get(given.id)
            if stored is None or stored.token != token or stored.last_error != words or stored.status == "running":
                demand_all([given], {})
            rows = [stored] if stored is not None else []
        if rows[0].status == "retry" and not pause:
            self._bell.ring({rows[0].task_type}, None)
        return task(rows[0])

    async def release(self, tasks: Task | Sequence[Task]) -> None:
        """Give claimed tasks back that were not begun, as if nobody had taken them. What is not yours stays as it
        is."""
        given = listed(tasks)
        for token, ids in by_claim(given).items():
            await self._asking.again(lambda ids=ids, token=token: self._table.release(ids, token))  # type: ignore[misc]  # as above
        self._bell.ring({keys.sql_key(one.type) for one in given}, None)

    async def cancel(self, task_id: UUID | Task) -> Task:
        """Have it done by nobody any more; whoever does it just now is refused when he is ready.

        Raises:
            NotFoundError: there is none of this id.
            ConflictError: it is finished already.
        """
        wanted = identity(task_id)
        row = await self._asking.again(lambda: self._table.cancel(wanted))
        return task(row) if row is not None else await self._finished(wanted, "cancelled")

    async def replay(self, task_id: UUID | Task) -> Task:
        """Begin a failed, cancelled or expired task anew, with all its attempts.

        Raises:
            NotFoundError: there is none of this id.
            ConflictError: it is done, or was not given up.
            AlreadyExistsError: a live task has its dedupe key.
        """
        wanted = identity(task_id)
        while (row := await self._asking.again(lambda: self._table.replay(wanted))) is None:
            found = await self.get(wanted)
            if found.status not in _GIVEN_UP:  # else it went to the archive just then
                return await self._finished(wanted, "pending")
        self._bell.ring({row.task_type}, None)
        return task(row)

    async def get(self, task_id: UUID) -> Task:
        """One task. NotFoundError when there is none of this id, or not any more."""
        wanted = identity(task_id)
        found = (await self._asking.again(lambda: self._table.by_id([wanted]))).get(wanted)
        if found is None:
            raise NotFoundError(_NO_TASK, tier="RELATIONAL_DB")
        return task(found)

    async def list(
        self,
        *,
        status: str | None = None,
        task_type: str | None = None,
        where: Mapping[str, Any] | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Task]:
        """A page of tasks, in the order in which their ids were made. The dead letters are those with status failed.

        Args:
            where: a filter of the payload: `{"depth_m": {"gt": 30}}` (see docs/tasks.md).
            limit: 1 to 1,000.
            cursor: `.next` of a page of the same list.

        Raises:
            NotFoundError: there is no such page.
            RejectedError: an argument cannot be meant.
        """
        if status is not None and status not in STATUSES:
            raise RejectedError(f"status: {status!r} is none; there are {', '.join(STATUSES)}")
        kind = None if task_type is None else type_text(task_type)
        found = filters.parse({} if where is None else where)
        page_limit(limit)
        after = UUID(int=0) if cursor is None else self._place(cursor, status, kind, repr(found))
        rows = await self._asking.again(lambda: self._table.page(after, limit + 1, status, kind, found))
        more = len(rows) > limit
        rows = rows[:limit]
        following = self._cursors.write(str(rows[-1].task_id), status, kind, repr(found)) if more else None
        return Page([task(row) for row in rows], following)

    async def counts(self, task_type: str | None = None) -> dict[str, int]:
        """How many tasks there are in each status; reads them all."""
        kind = None if task_type is None else type_text(task_type)
        found = await self._asking.again(lambda: self._table.counts(kind))
        return {status: found.get(status, 0) for status in STATUSES}

    def work(
        self, *types: str, batch: int = 1, worker: str | None = None, lease: Seconds | None = None
    ) -> AsyncGenerator[Job, None]:
        """Tasks as they come, for a worker:

            async for job in store.tasks.work("survey"):
                async with job:
                    await survey(job.payload)

        When the block of a job ends, its task is done; when it raises an Exception, the task has failed, comes again,
        and the loop goes on. Leases are kept up meanwhile. When the loop is left, what was not begun is given back at
        once; what is being done just now is given back, too, when its block is cancelled.

        Args:
            types: what you can do.
            batch: claim so many at a time, 1 to 1,000: they are done one after another.
            worker, lease: as for `claim`.

        Raises:
            RejectedError: an argument cannot be meant, or a job was not entered by `async with`.
            UnavailableError: PostgreSQL cannot be reached to begin with; later the loop waits for it.
        """
        return Loop(self, self._core, self._bell, types, batch, worker, self._lease(lease)).jobs()

    async def _finished(self, wanted: UUID, status: str) -> Task:
        """The task as it is when it is so already. NotFoundError, or ConflictError when it is otherwise."""
        found = await self.get(wanted)
        if found.status != status:
            raise ConflictError(f"the task is {found.status}", tier="RELATIONAL_DB")
        return found

    def _pause(self, given: Task) -> timedelta:
        doublings = min(max(given.attempts, 1) - 1, 40)
        most_ms = min(self._config.retry_ms * 2.0**doublings, self._config.retry_ms_max)
        return timedelta(milliseconds=most_ms * (0.5 + _dice.random() / 2))

    def _lease(self, lease: Seconds | None) -> timedelta:
        given = duration(self._config.lease_s if lease is None else lease, "lease")
        if given < timedelta(milliseconds=limits.TASK_LEASE_MS_MIN):
            raise RejectedError(f"lease: {given} is shorter than {limits.TASK_LEASE_MS_MIN} ms")
        return given

    @cached_property
    def _worker(self) -> str:
        return worker_text(f"{socket.gethostname()[:100]}:{os.getpid()}")

    @cached_property
    def _cursors(self) -> Cursors:
        return Cursors(self._core.epochs.store_id, "tasks")

    def _place(self, cursor: str, *of_list: object) -> UUID:
        values = self._cursors.read(cursor)
        if values[1:] != list(of_list):
            self._cursors.read("")  # raises what a forged one does
        return UUID(values[0])
