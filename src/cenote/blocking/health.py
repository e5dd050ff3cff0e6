"""How the store is doing, without `await`."""

from uuid import UUID

from cenote import store as stores
from cenote.blocking.thread import LoopThread
from cenote.engine.counted import Counted
from cenote.engine.monitor import Stats
from cenote.engine.unflushed import AgentLag, Dirty, Looked
from cenote.health.verdicts import Health, Readiness


class StoreHealth:
    """The part of `Store` that looks at the store itself."""

    _thread: LoopThread
    _store: stores.Store

    def stats(self) -> Stats:
        """Counts, lag and violations; see `cenote.Stats`."""
        return self._thread.run(self._store.stats())

    def counted(self) -> Counted:
        """What this process has counted of its own doings; see `cenote.Store.counted`."""
        return self._store.counted()

    def health(self) -> Health:
        """A verdict with reasons; see `cenote.Store.health`."""
        return self._thread.run(self._store.health())

    def ready(self) -> Readiness:
        """Whether this process should be sent work; see `cenote.Store.ready`."""
        return self._thread.run(self._store.ready())

    def dirty(self, agent: str | UUID | None = None, limit: int = 100) -> Looked[Dirty]:
        """Keys whose newest write SQL does not have yet; see `cenote.Store.dirty`."""
        return self._thread.run(self._store.dirty(agent, limit))

    def lagging(self, limit: int = 10) -> Looked[AgentLag]:
        """The agents with the oldest unflushed writes; see `cenote.Store.lagging`."""
        return self._thread.run(self._store.lagging(limit))
