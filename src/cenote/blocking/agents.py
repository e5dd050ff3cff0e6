"""The registry of agents without `await`."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from cenote.blocking.thread import LoopThread
from cenote.model.page import Page
from cenote.repositories import agents
from cenote.repositories.agents import Agent
from cenote.repositories.agents_content import SearchIndexState, StateHit


class Agents:
    """See `cenote.Store.agents`; threads may share it."""

    def __init__(self, thread: LoopThread, inner: agents.Agents) -> None:
        self._thread = thread
        self._inner = inner

    def save(self, agent: Agent, /) -> Agent:
        """Create or replace it; see the other `save`."""
        return self._thread.run(self._inner.save(agent))

    def update(self, agent: Agent, /) -> Agent:
        """Replace what was read; see the other `update`."""
        return self._thread.run(self._inner.update(agent))

    def find(self, agent_id: str | UUID, /) -> Agent:
        """One agent; see the other `find`."""
        return self._thread.run(self._inner.find(agent_id))

    def delete(self, agent_id: str | UUID, /) -> None:
        """Forget what it said of itself; see the other `delete`."""
        self._thread.run(self._inner.delete(agent_id))

    def heartbeat(self, agent_id: str | UUID, status: str | None = None) -> None:
        """Say that it is alive; see the other `heartbeat`."""
        self._thread.run(self._inner.heartbeat(agent_id, status))

    def list(self, *, limit: int = 100, cursor: str | None = None) -> Page[Agent]:
        """All that are registered; see the other `list`."""
        return self._thread.run(self._inner.list(limit=limit, cursor=cursor))

    def search(
        self, where: Mapping[str, Any] | None = None, *, type: str | None = None, status: str | None = None,
        limit: int = 100, cursor: str | None = None,
    ) -> Page[Agent]:  # fmt: skip
        """Those that say so; see the other `search`."""
        return self._thread.run(self._inner.search(where, type=type, status=status, limit=limit, cursor=cursor))

    def search_state(
        self, where: Mapping[str, Any], *, agent: str | UUID | None = None, key_prefix: str = "", limit: int = 100,
        cursor: str | None = None,
    ) -> Page[StateHit]:  # fmt: skip
        """What agents hold, by its content; see the other `search_state`."""
        work = self._inner.search_state(where, agent=agent, key_prefix=key_prefix, limit=limit, cursor=cursor)
        return self._thread.run(work)

    def search_index(self) -> SearchIndexState:
        """Which index there is; see the other `search_index`."""
        return self._thread.run(self._inner.search_index())
