"""Checkpoints without `await`."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Self
from uuid import UUID

from cenote import agent as agents
from cenote import store as stores
from cenote.blocking.thread import LoopThread
from cenote.engine.checkpoint import Checkpoint
from cenote.engine.past import Difference, History
from cenote.model.page import Page


class AgentPast:
    """The part of `AgentState` that keeps what was."""

    _thread: LoopThread
    _agent: agents.AgentState

    def __init__(self, thread: LoopThread, agent: agents.AgentState) -> None:
        self._thread = thread
        self._agent = agent

    def checkpoint(
        self,
        label: str | None = None,
        *,
        metadata: object = None,
        keep: bool = False,
        deadline: timedelta | float | None = None,
    ) -> Checkpoint:
        """Keep what the agent is now; see the other `checkpoint`."""
        return self._thread.run(self._agent.checkpoint(label, metadata=metadata, keep=keep, deadline=deadline))

    def checkpoints(self, *, cursor: str | None = None, limit: int = 100) -> Page[Checkpoint]:
        """A page of what is kept, the newest first; see the other `checkpoints`."""
        return self._thread.run(self._agent.checkpoints(cursor=cursor, limit=limit))

    def find_checkpoint(self, checkpoint: UUID | str) -> Checkpoint:
        """The checkpoint of this agent with this id; see the other `find_checkpoint`."""
        return self._thread.run(self._agent.find_checkpoint(checkpoint))

    def delete_checkpoint(self, checkpoint: Checkpoint | UUID | str) -> None:
        """Remove a checkpoint; see the other `delete_checkpoint`."""
        self._thread.run(self._agent.delete_checkpoint(checkpoint))

    def fork(self, new_agent: str | UUID, checkpoint: Checkpoint | UUID | str) -> Self:
        """Another agent that begins as a checkpoint of this one; see the other `fork`."""
        return type(self)(self._thread, self._thread.run(self._agent.fork(new_agent, checkpoint)))

    def diff(self, a: Checkpoint | UUID | str, b: Checkpoint | UUID | str) -> Difference:
        """What became of the keys from `a` to `b`; see the other `diff`."""
        return self._thread.run(self._agent.diff(a, b))

    def history(self, key: str) -> History:
        """What is still known of a key's past; see the other `history`."""
        return self._thread.run(self._agent.history(key))


class StorePast:
    """The part of `Store` that keeps several agents as they are at one moment."""

    _thread: LoopThread
    _store: stores.Store

    def checkpoint(
        self,
        wanted: Sequence[str | UUID],
        label: str | None = None,
        *,
        metadata: object = None,
        keep: bool = False,
        deadline: timedelta | float | None = None,
    ) -> list[Checkpoint]:
        """Several agents as they are at one moment; see the other `checkpoint`."""
        work = self._store.checkpoint(wanted, label, metadata=metadata, keep=keep, deadline=deadline)
        return self._thread.run(work)
