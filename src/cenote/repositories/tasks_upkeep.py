"""What the queue needs now and then: tasks that nobody took in time expire, finished ones go to the archive, and leave
that after their retention. No claim waits for it: whoever claims passes over all of them."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from cenote import limits
from cenote.engine.core import Core
from cenote.sql.tasks import TaskTable

EVERY_S: Final = 30.0


class Upkeep:
    """Keeps the queue small."""

    def __init__(self, core: Core, archive_after_s: float = limits.TASKS_ARCHIVE_AFTER_S) -> None:
        self._table = TaskTable(core.db)
        self._rest = timedelta(seconds=archive_after_s)
        self._age = timedelta(seconds=core.config.tasks.retention_s)

    async def tend(self) -> None:
        """What the active flusher does now and then."""
        await self._all(lambda: self._table.expire(limits.TASKS_UPKEEP_ROWS))
        await self._all(lambda: self._table.forget(limits.TASKS_UPKEEP_ROWS, self._age))
        await self._all(lambda: self._table.archive(limits.TASKS_UPKEEP_ROWS, self._rest))

    async def _all(self, some: Callable[[], Awaitable[int]]) -> None:
        while await some() == limits.TASKS_UPKEEP_ROWS:
            pass
