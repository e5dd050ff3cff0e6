"""The conflict log: what happened when two writes met, and what was discarded (I6).

A record is an ordinary entry of one reserved agent, so it needs no road of its own: it is acknowledged by KV, flushed,
hydrated, and outlives whoever wrote it like any other entry. It expires after `conflicts.ttl_s`.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from cenote.conflict import Side
from cenote.engine.core import Core
from cenote.engine.entries import Target
from cenote.engine.writer import Content, Writer
from cenote.model import key as keys
from cenote.model import value as values
from cenote.model.clocked import Clocked
from cenote.model.entry import from_ms

Outcome = Literal["current", "incoming", "merged", "refused", "unresolved"]

LOG_ID: Final = UUID("c0a15e70-c0f1-4c75-9a1e-5c0ff11c7106")  # drawn once, at random but for its first letters
LOG: Final = keys.agent_ref(LOG_ID)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Two writes that met under one key.

    Attributes:
        at: the KV server's time, UTC.
        agent, key: where.
        strategy: by its name in `cenote.conflict.RESOLVERS`.
        outcome: whose value stands, or why none was written.
        writer, operation: whose write met what was there.
        current, incoming: both values; result: what stands, None where nothing was written.
        discarded: of "current" and "incoming", those that do not live on in the result.
        versions: of what was there, and the one that the incoming write was to have.
        reason: why it was refused.
    """

    at: datetime
    agent: str
    key: str
    strategy: str
    outcome: Outcome
    writer: str
    operation: str
    current: Any
    incoming: Any
    result: Any
    discarded: tuple[str, ...]
    versions: tuple[str | None, str | None]
    reason: str | None


class ConflictLog:
    """Writes the records of one process, and counts meetings."""

    def __init__(self, core: Core, writer: Writer) -> None:
        self._core = core
        self._writer = writer
        self.counts: Counter[tuple[str, str]] = Counter()

    def count(self, strategy: str, outcome: Outcome) -> None:
        """A meeting of which there is nothing to record: nobody lost anything."""
        self.counts[str(strategy), outcome] += 1

    async def record(
        self,
        target: Target,
        *,
        operation: str,
        strategy: str,
        outcome: Outcome,
        current: Side,
        incoming: Side,
        result: Any,
        discarded: tuple[str, ...],
        reason: str | None = None,
    ) -> None:
        """Acknowledged by KV before it returns; called again with the same operation it replaces the record."""
        now_ms = self._core.now_ms()
        record = {
            "at": from_ms(now_ms),
            "agent": target.agent.text,
            "key": target.key,
            "strategy": str(strategy),
            "outcome": outcome,
            "writer": incoming.writer,
            "operation": operation,
            "current": _whole(current),
            "incoming": _whole(incoming),
            "result": result,
            "discarded": list(discarded),
            "versions": [None if side.version is None else str(side.version) for side in (current, incoming)],
            "reason": reason,
        }
        codec, body = values.encode(record)
        place = self._core.target(LOG, operation)
        await self._writer.write(place, Content(codec, body, now_ms + 604_800_000))
        self.count(strategy, outcome)


def _whole(side: Side) -> Any:
    return side.value if side.clock is None else Clocked(side.value, side.clock)
