"""What a restore tells who asked for it."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from cenote.engine.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore did to one agent.

    Attributes:
        agent: whose state it is.
        checkpoint: what the agent is again.
        before: what it was; restore it, and the restore is undone.
        written, deleted: how many keys differed, and were written or deleted.
        left: keys that others have written since `before`: they stay; 1,000 of them at most are named.
        at_once: whether it was one atomic batch.
    """

    agent: str
    checkpoint: Checkpoint
    before: Checkpoint
    written: int
    deleted: int
    left: tuple[str, ...]
    at_once: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Restoring:
    """A restore that is not finished: some keys are of the checkpoint by now, the others are not.

    Attributes:
        id: of the restore.
        agents: all that take part in it.
        checkpoint, before: what this agent will be, and what it was.
        begun_at, renewed_at: PostgreSQL's times: when it began, and when somebody last worked on it.
    """

    id: UUID
    agents: tuple[str, ...]
    checkpoint: UUID
    before: UUID
    begun_at: datetime
    renewed_at: datetime
