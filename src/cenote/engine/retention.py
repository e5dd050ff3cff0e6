"""Checkpoints that nobody needs any more are removed: by wish, and by the process that flushes as the settings say.

A delta needs what it stands on. So a survivor that stands on what is to go is made a base first, of what is kept; what
somebody has come to stand on since stays, and is removed another time.
"""

import time
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from cenote import limits, points
from cenote.engine.checkpoint import Checkpoint, Checkpoints
from cenote.engine.core import Core
from cenote.errors import UnavailableError
from cenote.model import key as keys

EVERY_S: Final = 60.0
_AT_A_TIME: Final = 1_000


class Retention:
    """Removes checkpoints."""

    def __init__(self, core: Core, checkpoints: Checkpoints) -> None:
        self._keep = core.config.checkpoints
        self._rows = core.rows
        self._checkpoints = checkpoints
        self._table = checkpoints.table

    async def remove(self, agent: keys.AgentRef, given: Checkpoint | UUID | str) -> None:
        """Remove one. NotFoundError; UnavailableError: it is still there."""
        found = await self._checkpoints.find(agent, given)
        await self._rows.copied(None, of=found.id)
        if not await self._remove(agent, [found.id]):
            raise UnavailableError(
                "the checkpoint is needed just now, by a restore or by one that is being made", tier="RELATIONAL_DB",
                hint="try again; `cenote restore AGENT` finishes a restore that was left",
            )  # fmt: skip

    async def tend(self) -> None:
        """Remove what the settings have no reason to keep, and what was left by processes that died."""
        if self._keep.last is not None:
            wanted = (self._keep.last, self._keep.hours, self._keep.days)
            for agent_id, ids in await self._table.surplus(*wanted, _AT_A_TIME):
                await self._remove(keys.AgentRef(str(agent_id), "", agent_id), ids)
        for data_id in await self._table.orphans(_made_before(limits.CHECKPOINT_ORPHAN_S)):
            await self._table.drop_parts(data_id)

    async def _remove(self, agent: keys.AgentRef, ids: Sequence[UUID]) -> int:
        for survivor in await self._table.standing_on(ids):
            await self._checkpoints.rebase(agent, survivor)
        if points.armed:
            await points.hit("checkpoint.remove")
        return await self._table.remove(agent.id, ids)


def _made_before(seconds: float) -> UUID:
    """No UUIDv7 that was made so long ago is above it."""
    return UUID(int=int((time.time() - seconds) * 1000) << 80)
