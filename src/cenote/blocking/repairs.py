"""Repairs without `await`."""

from collections.abc import Callable, Iterable
from uuid import UUID

from cenote import store as stores
from cenote.blocking.thread import LoopThread
from cenote.engine.repair import Repaired


class StoreRepair:
    """The part of `Store` that repairs."""

    _thread: LoopThread
    _store: stores.Store

    def repair(
        self,
        dry_run: bool = False,
        *,
        agents: Iterable[str | UUID] | None = None,
        progress: Callable[[Repaired], object] | None = None,
    ) -> Repaired:
        """Compare NATS with PostgreSQL and mend what differs; see the other `repair`. `progress` is called in the
        store's own thread."""
        return self._thread.run(self._store.repair(dry_run, agents=agents, progress=progress))

    def repairs(self, limit: int = 20) -> list[Repaired]:
        """The newest repairs; see the other `repairs`."""
        return self._thread.run(self._store.repairs(limit))
