"""One agent's life without `await`."""

from collections.abc import Callable, Iterable
from datetime import timedelta
from uuid import UUID

from cenote import agent as agents
from cenote import store as stores
from cenote.blocking.iteration import Iteration
from cenote.blocking.thread import LoopThread
from cenote.engine.bed import Slept
from cenote.engine.hydrator import Hydrated, Progress
from cenote.engine.lifecycle import LifecycleEvent
from cenote.lifecycle import Phase


class AgentLife:
    """The part of `AgentState` that brings an agent in and puts it aside. Callbacks run in the store's own thread."""

    _thread: LoopThread
    _agent: agents.AgentState

    def hydrate(self, *, after: str | None = None, progress: Callable[[Progress], object] | None = None) -> Hydrated:
        """Bring all keys back into KV; see `cenote.AgentState.hydrate`."""
        return self._thread.run(self._agent.hydrate(after=after, progress=progress))

    def prefetch(
        self,
        prefix: str = "",
        *,
        keys: Iterable[str] | None = None,
        after: str | None = None,
        progress: Callable[[Progress], object] | None = None,
    ) -> Hydrated:
        """Bring some keys back into KV; see `cenote.AgentState.prefetch`."""
        return self._thread.run(self._agent.prefetch(prefix, keys=keys, after=after, progress=progress))

    def flush(self, timeout: timedelta | float | None = None) -> None:
        """Wait until PostgreSQL has all of this agent; see `cenote.AgentState.flush`."""
        self._thread.run(self._agent.flush(timeout))

    def phase(self) -> Phase:
        """Where this agent stands; see `cenote.AgentState.phase`."""
        return self._thread.run(self._agent.phase())

    def sleep(self, timeout: timedelta | float | None = None) -> Slept:
        """Put this agent aside; see `cenote.AgentState.sleep`."""
        return self._thread.run(self._agent.sleep(timeout))

    def lifecycle_events(self, limit: int = 100) -> list[LifecycleEvent]:
        """What was done with this agent; see `cenote.AgentState.lifecycle_events`."""
        return self._thread.run(self._agent.lifecycle_events(limit))


class WarmUp:
    """The part of `Store` that does it for many, and follows what is done."""

    _thread: LoopThread
    _store: stores.Store

    def warm_up(
        self,
        agents: Iterable[str | UUID],
        *,
        at_once: int = 16,
        progress: Callable[[str, Hydrated], object] | None = None,
    ) -> dict[str, Hydrated]:
        """Bring many agents back into KV; see `cenote.Store.warm_up`."""
        return self._thread.run(self._store.warm_up(agents, at_once=at_once, progress=progress))

    def lifecycle_events(self, agents: str = "*", since: str | int | None = None) -> Iteration[LifecycleEvent]:
        """What is done on purpose with agents, as it happens; see `cenote.Store.lifecycle_events`."""
        return Iteration(self._thread, self._store.lifecycle_events(agents, since), page=1)
