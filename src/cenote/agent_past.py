"""One agent's past: checkpoints, and what it was at each of them."""

from datetime import timedelta
from uuid import UUID

from cenote.agent_life import AgentLife
from cenote.engine.checkpoint import Checkpoint
from cenote.engine.checkpoint_draft import wish
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
