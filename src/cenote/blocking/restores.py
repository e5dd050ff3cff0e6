"""Restores, exports and imports without `await`."""

from collections.abc import Iterable
from uuid import UUID

from cenote import agent as agents
from cenote import store as stores
from cenote.blocking.iteration import Iteration
from cenote.blocking.thread import LoopThread
from cenote.engine.checkpoint import Checkpoint
from cenote.engine.restored import Restored, Restoring
from cenote.engine.transfer import Imported


class AgentRestores:
    """The part of `AgentState` that goes back to a checkpoint."""

    _thread: LoopThread
    _agent: agents.AgentState

    def restore(self, checkpoint: Checkpoint | UUID | str) -> Restored:
        """Become again what a checkpoint holds; see the other `restore`."""
        return self._thread.run(self._agent.restore(checkpoint))

    def restoring(self) -> Restoring | None:
        """The restore that is not finished; see the other `restoring`."""
        return self._thread.run(self._agent.restoring())

    def finish_restore(self) -> list[Restored]:
        """Go on with what somebody has begun; see the other `finish_restore`."""
        return self._thread.run(self._agent.finish_restore())

    def export(self) -> Iteration[bytes]:
        """Lines of a file; see the other `export`."""
        return Iteration(self._thread, self._agent.export(), page=1)


class StoreRestores:
    """The part of `Store` that does so for several agents."""

    _thread: LoopThread
    _store: stores.Store

    def restore(self, checkpoints: Iterable[Checkpoint]) -> list[Restored]:
        """Several agents, all together; see the other `restore`."""
        return self._thread.run(self._store.restore(checkpoints))

    def import_agent(self, lines: Iterable[bytes]) -> Imported:
        """Take an agent from a file; see the other `import_agent`."""
        return self._thread.run(self._store.import_agent(lines))
