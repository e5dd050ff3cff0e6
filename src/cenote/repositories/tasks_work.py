"""The loop of a worker: it claims tasks, keeps their leases up while they are done, and gives back what it does not
begin.

A job is a context manager, for only that sees how a block ended: an iterator learns neither that its loop's body raised
nor what.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import UUID

from cenote.engine.core import Core
from cenote.errors import CenoteError, ConflictError, RejectedError, SetupError, TransactionError, UnavailableError
from cenote.model.page import page_limit
from cenote.repositories.tasks_bell import Bell
from cenote.repositories.tasks_entity import Task, type_text
from cenote.sql.transaction import Transaction

if TYPE_CHECKING:
    from cenote.repositories.tasks import Tasks

log = logging.getLogger("cenote.tasks")

_AWAY_S: Final = 1.0
_dice = random.Random()  # its own: a program that seeds the global one must get what it expects


class Job:
    """A task in the hands of this worker; do it within `async with job:`.

    Attributes:
        task: what is to be done.
        result: set it, to be kept with the task when the block ends.
        lost: the lease is over, or the task was cancelled: what you do from now on is in vain.
    """

    def __init__(self, tasks: "Tasks", task: Task, held: dict[UUID, "Job"]) -> None:
        self._tasks = tasks
        self._held = held
        self.task = task
        self.result: Any = None
        self.lost = False
        self.begun = False
        self.ending = False

    @property
    def payload(self) -> Any:
        """The task's."""
        return self.task.payload

    async def complete(self, result: object = None, *, tx: Transaction | None = None) -> None:
        """Say that it is done before the block ends: with `tx`, together with what that transaction writes.

        Raises:
            ConflictError: it is not yours any more; let the error end the transaction.
        """
        self.ending = True
        try:
            await self._tasks.complete(self.task, self.result if result is None else result, tx=tx)
        except BaseException:
            self.ending = False
            raise
        if tx is None:
            self._settle()
        else:
            tx.after_commit.append(self._settle)

    async def fail(
        self, error: str | BaseException, *, retry: bool = True, delay: timedelta | float | None = None
    ) -> None:
        """Say that it cannot be done before the block ends; see `Tasks.fail`."""
        self.ending = True
        await self._tasks.fail(self.task, error, retry=retry, delay=delay)
        self._settle()

    async def __aenter__(self) -> Self:
        if self.begun:
            raise RejectedError(f"task {self.task.id}: it was begun already")
        self.begun = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Record how it ended. An Exception ends here; anything else gives the task back and goes on."""
        try:
            if self.task.id not in self._held:
                if isinstance(error, Exception):
                    log.warning("task %s was settled before its block failed: %r", self.task.id, error)
            elif error is None:
                await self.complete()
            elif isinstance(error, Exception):
                log.warning("task %s (%s) failed: %r", self.task.id, self.task.type, error)
                await self.fail(error)
            else:
                await asyncio.shield(self._tasks.release(self.task))
        except ConflictError:
            log.warning("task %s (%s) was lost before it was finished", self.task.id, self.task.type)
        except CenoteError as trouble:
            log.warning("the end of task %s could not be recorded, it will be done again: %s", self.task.id, trouble)
        finally:
            self._settle()
        return error is None or isinstance(error, Exception)

    def _settle(self) -> None:
        self._held.pop(self.task.id, None)


class Loop:
    """One worker's; iterate `jobs()` once."""

    def __init__(
        self, tasks: "Tasks", core: Core, bell: Bell, types: Sequence[str], batch: int, worker: str | None,
        lease: timedelta,
    ) -> None:  # fmt: skip
        self._tasks = tasks
        self._core = core
        self._bell = bell
        self._types = types
        self._batch = page_limit(batch)
        self._worker = worker
        self._lease = lease
        self._held: dict[UUID, Job] = {}
        self._stirred = asyncio.Event()
        self._closed = False
        self._reached = False

    async def jobs(self) -> AsyncGenerator[Job, None]:
        """Jobs until the iterator or the store is closed; see `Tasks.work`."""
        with self._listening():
            beat = asyncio.create_task(self._beat(), name="cenote-task-leases")
            try:
                while not self._closed:
                    self._stirred.clear()
                    jobs = await self._next()
                    for job in jobs:
                        if job.lost or self._closed:
                            continue
                        yield job
                        if not job.begun:
                            raise RejectedError(
                                f"task {job.task.id}: it was not begun", hint="do it within `async with job:`"
                            )
            finally:
                beat.cancel()
                await self._give_back()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        core = self._core
        core.link.on_connect.append(self._stirred.set)
        core.on_close.append(self._close)
        try:
            with self._bell.heard(sorted({type_text(one) for one in self._types}), lambda *_: self._stirred.set()):
                yield
        finally:
            core.on_close.remove(self._close)
            core.link.on_connect.remove(self._stirred.set)

    async def _next(self) -> list[Job]:
        pause_s = self._core.config.tasks.poll_ms / 1000
        try:
            found = await self._tasks.claim(*self._types, limit=self._batch, worker=self._worker, lease=self._lease)
            self._reached = True
        except (UnavailableError, TransactionError) as error:
            if not self._reached:
                raise
            log.debug("a worker waits for PostgreSQL: %s", error)
            found, pause_s = [], _AWAY_S
        except SetupError:
            if self._closed:
                return []
            raise
        if not found and not self._closed:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s * (0.75 + _dice.random() / 2)):
                    await self._stirred.wait()
        jobs = [Job(self._tasks, one, self._held) for one in found]
        self._held |= {job.task.id: job for job in jobs}
        return jobs

    async def _beat(self) -> None:
        """Keep the leases of what is held up: three times within each."""
        while True:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            asked = list(self._held.values())
            if not asked:
                continue
            try:
                kept = {one.id for one in await self._tasks.heartbeat([job.task for job in asked], lease=self._lease)}
            except CenoteError as error:
                log.warning("leases of %d tasks could not be prolonged: %s", len(asked), error)
                continue
            for job in asked:
                if job.task.id not in kept and job.task.id in self._held and not job.ending:
                    job.lost = True
                    self._held.pop(job.task.id)
                    log.warning("task %s (%s) is lost: its lease was over", job.task.id, job.task.type)

    async def _give_back(self) -> None:
        left = [job.task for job in self._held.values() if not job.begun]
        self._held.clear()
        if left:
            try:
                await self._tasks.release(left)
            except CenoteError as error:
                log.warning("%d tasks come again by their leases only: %s", len(left), error)

    def _close(self) -> None:
        self._closed = True
        self._stirred.set()
