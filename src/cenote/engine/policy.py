"""Checkpoints that the settings ask for: of an agent that was changed so often, or so long ago.

The active flusher makes them beside its flushes. What has changed the log of the flushes says: nobody who writes or
flushes does anything for it. It is counted in PostgreSQL: whoever takes over goes on. A checkpoint that was made and
not noted, because the process died in between, is made once more.
"""

import logging
from typing import Final

from cenote import limits, points
from cenote.engine.checkpoint import Checkpoints
from cenote.engine.checkpoint_draft import wish
from cenote.engine.core import Core
from cenote.errors import CenoteError
from cenote.model import key as keys
from cenote.sql.policy import Due, DueTable

log = logging.getLogger("cenote.engine")

LABEL: Final = "by policy"


class Policy:
    """Makes them, for one process."""

    def __init__(self, core: Core, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._table = DueTable(core.db)
        self._writes = core.config.checkpoints.every_writes
        self._age_s = core.config.checkpoints.every_s
        self._begun = False
        self.every_s = 1.0 if self._age_s is None else min(1.0, max(0.05, self._age_s / 4))

    @property
    def wanted(self) -> bool:
        """Whether the settings ask for any."""
        return self._writes is not None or self._age_s is not None

    async def tend(self) -> None:
        """Count what has changed, and keep what is due: a bounded number, the others come next time."""
        if not self._begun:
            await self._table.begin()
            self._begun = True
        for _ in range(limits.POLICY_PAGES):
            if await self._table.count(limits.POLICY_COMMITS, list(keys.RESERVED_IDS)) < limits.POLICY_COMMITS:
                break
        for _ in range(limits.POLICY_CHECKPOINTS):
            due = await self._table.claim(self._writes, self._age_s, 1, limits.POLICY_CLAIM_S)
            if not due:
                return
            if points.armed:
                await points.hit("policy.claimed")
            await self._keep(due[0])

    async def _keep(self, due: Due) -> None:
        """One that cannot be kept now comes again when its claim is over."""
        agent = keys.agent_ref(keys.from_sql_key(due.name))
        try:
            await self._checkpoints.create(agent, wish(LABEL, None, keep=False))
            if points.armed:
                await points.hit("policy.kept")
            await self._table.done(due)
        except CenoteError as error:
            log.warning("no checkpoint of %r just now: %s", agent.text, error)
