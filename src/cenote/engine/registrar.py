"""Names of agents, beside the flush (I13; flow rule 23): an id that is a hash says nothing to those who read SQL."""

import asyncio
import logging

from cenote.errors import CenoteError
from cenote.model import key as keys
from cenote.sql.state import StateTable

log = logging.getLogger("cenote.engine")

_KNOWN_MAX = 100_000
_AGAIN_S = 1.0


class Registrar:
    """Registers each agent once."""

    def __init__(self, table: StateTable) -> None:
        self._table = table
        self._known: set[keys.AgentRef] = set()
        self._waiting: set[keys.AgentRef] = set()

    async def register(self, agents: set[keys.AgentRef]) -> None:
        """After the commit and in a transaction of its own: a registry that refuses must not stop anyone's flush. But
        before the ack, after which nothing would ever bring the agent's name again."""
        new = (agents | self._waiting) - self._known - {keys.CONFLICTS}  # nobody's agent, and its id is no hash
        if not new:
            return
        try:
            await self._table.register([(agent.id, keys.sql_key(agent.text)) for agent in new])
        except CenoteError as error:
            log.warning("agents could not be registered, trying again: %s", error)
            self._waiting = new
            return
        self._waiting = set()
        if len(self._known) > _KNOWN_MAX:
            self._known.clear()
        self._known |= new

    async def keep_trying(self) -> None:
        """Register those whose registration failed, though nobody writes again."""
        while True:
            await asyncio.sleep(_AGAIN_S)
            await self.register(set())
