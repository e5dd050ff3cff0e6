"""Tasks without `await`."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from cenote.blocking.iteration import Iteration
from cenote.blocking.thread import LoopThread
from cenote.model.page import Page
from cenote.repositories import tasks, tasks_work
from cenote.repositories.tasks import Seconds
from cenote.repositories.tasks_entity import NewTask, Task
from cenote.sql.transaction import Transaction


class Job:
    """A task in the hands of this worker; do it within `with job:`. See the other `Job`."""

    def __init__(self, thread: LoopThread, inner: tasks_work.Job) -> None:
        self._thread = thread
        self._inner = inner

    @property
    def task(self) -> Task:
        """What is to be done."""
        return self._inner.task

    @property
    def payload(self) -> Any:
        """The task's."""
        return self._inner.payload

    @property
    def lost(self) -> bool:
        """What you do from now on is in vain."""
        return self._inner.lost

    @property
    def result(self) -> Any:
        """Set it, to be kept with the task when the block ends."""
        return self._inner.result

    @result.setter
    def result(self, value: Any) -> None:
        self._inner.result = value

    def complete(self, result: object = None, *, tx: Transaction | None = None) -> None:
        """Say that it is done before the block ends; see the other `complete`."""
        self._thread.run(self._inner.complete(result, tx=tx))

    def fail(self, error: str | BaseException, *, retry: bool = True, delay: Seconds | None = None) -> None:
        """Say that it cannot be done before the block ends; see the other `fail`."""
        self._thread.run(self._inner.fail(error, retry=retry, delay=delay))

    def __enter__(self) -> Self:
        self._thread.run(self._inner.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return self._thread.run(self._inner.__aexit__(kind, error, trace))


class Tasks:
    """See `cenote.Store.tasks`; threads may share it."""

    def __init__(self, thread: LoopThread, inner: tasks.Tasks) -> None:
        self._thread = thread
        self._inner = inner

    def add(
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
        """Have something done; see the other `add`."""
        work = self._inner.add(
            task_type, payload, priority=priority, run_at=run_at, delay=delay, expires_in=expires_in,
            attempts_max=attempts_max, dedupe_key=dedupe_key, metadata=metadata, task_id=task_id, tx=tx,
        )  # fmt: skip
        return self._thread.run(work)

    def add_many(self, tasks: Iterable[NewTask], *, tx: Transaction | None = None) -> list[Task]:
        """Add several at once, all or none; see the other `add_many`."""
        return self._thread.run(self._inner.add_many(tasks, tx=tx))

    def claim(self, *types: str, limit: int = 1, worker: str | None = None, lease: Seconds | None = None) -> list[Task]:
        """Take tasks that are due; see the other `claim`."""
        return self._thread.run(self._inner.claim(*types, limit=limit, worker=worker, lease=lease))

    def heartbeat(self, tasks: Task | Sequence[Task], *, lease: Seconds | None = None) -> list[Task]:
        """Keep claimed tasks; see the other `heartbeat`."""
        return self._thread.run(self._inner.heartbeat(tasks, lease=lease))

    def complete(
        self, tasks: Task | Sequence[Task], result: object = None, *, tx: Transaction | None = None
    ) -> list[Task]:
        """Say that claimed tasks are done; see the other `complete`."""
        return self._thread.run(self._inner.complete(tasks, result, tx=tx))

    def fail(
        self, given: Task, error: str | BaseException, *, retry: bool = True, delay: Seconds | None = None
    ) -> Task:
        """Say that a claimed task could not be done; see the other `fail`."""
        return self._thread.run(self._inner.fail(given, error, retry=retry, delay=delay))

    def release(self, tasks: Task | Sequence[Task]) -> None:
        """Give claimed tasks back that were not begun; see the other `release`."""
        self._thread.run(self._inner.release(tasks))

    def cancel(self, task_id: UUID | Task) -> Task:
        """Have it done by nobody any more; see the other `cancel`."""
        return self._thread.run(self._inner.cancel(task_id))

    def replay(self, task_id: UUID | Task) -> Task:
        """Begin a given up task anew; see the other `replay`."""
        return self._thread.run(self._inner.replay(task_id))

    def get(self, task_id: UUID) -> Task:
        """One task; see the other `get`."""
        return self._thread.run(self._inner.get(task_id))

    def counts(self, task_type: str | None = None) -> dict[str, int]:
        """How many tasks there are in each status; see the other `counts`."""
        return self._thread.run(self._inner.counts(task_type))

    def work(
        self, *types: str, batch: int = 1, worker: str | None = None, lease: Seconds | None = None
    ) -> Iteration[Job]:
        """Tasks as they come; see the other `work`. Close it, or use it as a context manager, to stop: what was not
        begun is given back then."""
        thread = self._thread

        async def jobs() -> AsyncIterator[Job]:
            source = self._inner.work(*types, batch=batch, worker=worker, lease=lease)
            async with aclosing(source) as found:
                async for job in found:
                    yield Job(thread, job)

        return Iteration(thread, jobs(), page=1)

    def list(
        self,
        *,
        status: str | None = None,
        task_type: str | None = None,
        where: Mapping[str, Any] | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Task]:
        """A page of tasks; see the other `list`."""
        work = self._inner.list(status=status, task_type=task_type, where=where, limit=limit, cursor=cursor)
        return self._thread.run(work)
