"""One agent's past: checkpoints, and what it was at each of them."""

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

from cenote.agent_life import AgentLife
from cenote.engine.checkpoint import Checkpoint
from cenote.engine.checkpoint_draft import wish
from cenote.engine.restored import Restored, Restoring
from cenote.model.duration import seconds
from cenote.model.page import Page


class AgentPast(AgentLife):
    """The part of `AgentState` that keeps what was."""

    async def checkpoint(
        self,
        label: str | None = None,
        *,
        metadata: object = None,
        keep: bool = False,
        deadline: timedelta | float | None = None,
    ) -> Checkpoint:
        """Keep what this agent is now: all of its keys as they are at one moment of the stream, whoever writes
        meanwhile. What this process has written before is in it.

        Args:
            label: for people, 200 characters at most.
            metadata: for programs, 64 KiB encoded at most.
            keep: retention never removes it.
            deadline: how long to try; default `retry.deadline_ms`.

        Raises:
            UnavailableError: NATS or PostgreSQL does not answer, or no consistent cut was made within the deadline;
                nothing was kept.
        """
        limit_s = seconds(deadline, "deadline")
        of = wish(label, metadata, keep=keep)
        return await self._machines.checkpoints.create(self._agent, of, None if limit_s is None else limit_s * 1000)

    async def checkpoints(self, *, cursor: str | None = None, limit: int = 100) -> Page[Checkpoint]:
        """What was kept of this agent, the newest first; `cursor`: the `.next` of the page before. Raises
        UnavailableError."""
        return await self._machines.checkpoints.page(self._agent, cursor, limit)

    async def find_checkpoint(self, checkpoint: UUID | str) -> Checkpoint:
        """The checkpoint of this agent with this id. NotFoundError for an unknown one and for another agent's."""
        return await self._machines.checkpoints.find(self._agent, checkpoint)

    async def restore(self, checkpoint: Checkpoint | UUID | str) -> Restored:
        """Become again what a checkpoint holds. What differs is written anew, deletes included; what has expired since
        stays away. What the agent is now is kept as a checkpoint first: `.before`.

        A key that others write after `.before` stays as they wrote it (`.left`). Up to 1,000 keys that differ, and 16
        MiB, are one atomic batch; more are several, and `restoring()` says so until it is done, in any process. When
        this process dies in between, the flusher finishes it within a minute, or the next `restore` at once.

        Raises:
            NotFoundError: it is no checkpoint of this agent.
            UnknownFormat, ConsistencyError: it is of a newer format, or damaged; nothing was written.
            UnavailableError, BackpressureError, ConflictError: nothing was written, or `restoring()` shows the rest.
        """
        return (await self._machines.restorer.restore([(self._agent, checkpoint)]))[0]

    async def restoring(self) -> Restoring | None:
        """The restore of this agent that is not finished: until then its keys are partly of the checkpoint, partly as
        before. Raises UnavailableError."""
        return await self._machines.restorer.restoring(self._agent)

    async def finish_restore(self) -> list[Restored]:
        """Go on with a restore of this agent that somebody has begun; [] when there is none. Raises as `restore`."""
        return await self._machines.restorer.finish(self._agent)

    async def export(self) -> AsyncIterator[bytes]:
        """This agent with all of its checkpoints, the last of which is made now, as lines of a file for
        `store.import_agent`.

        Raises:
            UnavailableError: the servers went away, or checkpoints were removed meanwhile: begin a new file.
            ConsistencyError: a checkpoint is damaged.
        """
        async for line in self._machines.transfer.exported(self._agent):
            yield line
