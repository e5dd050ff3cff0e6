"""Who the agents are, for those who read SQL, beside the flush (I13; flow rule 23): names, for an id that is a hash
says nothing, and what each agent says of itself.

The state is authoritative: what an agent says of itself is an entry of a reserved agent, flushed like all others. The
registry repeats what is committed there, behind a fence of its own, so it may be late, and a failed one is made up for.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress

from cenote.errors import CenoteError, RejectedError
from cenote.model import key as keys
from cenote.sql.errors import DataRefused
from cenote.sql.rows import Row
from cenote.sql.state import StateTable

log = logging.getLogger("cenote.engine")

_KNOWN_MAX = 100_000
_AGAIN_S = 1.0
_HEARTBEATS_S = 5.0
_PAGE = 1_000
_PATIENCE_MS = 2_000
"""Whoever locks the registry holds up one flush for so long at most: from then on it is tried beside the flushes."""


class Registrar:
    """Registers each agent once, and repeats what is said of each whenever that has changed."""

    def __init__(self, table: StateTable) -> None:
        self._table = table
        self._known: set[keys.AgentRef] = set()
        self._waiting: set[keys.AgentRef] = set()
        self._heard: set[str] = set()
        self._behind = True
        """Whether the registry may lack something that nobody will bring again: at first, who knows what became of
        the tenure before."""

    async def register(self, agents: set[keys.AgentRef], rows: Sequence[Row] = ()) -> None:
        """After the commit and in a transaction of its own: a registry that refuses must not stop anyone's flush. But
        before the ack, after which nothing would ever bring the agent's name again."""
        said: list[str] = []
        beaten: list[str] = []
        if not keys.RESERVED_AGENTS.keys().isdisjoint(agents):
            said = [row.key for row in rows if row.agent_id == keys.PROFILES.id]
            beaten = [row.key for row in rows if row.agent_id == keys.HEARTBEATS.id]
            agents = (agents - keys.RESERVED_AGENTS.keys()) | _refs(said) | _refs(beaten)
        await self._name(agents | self._waiting)
        if len(self._heard) < _KNOWN_MAX:
            self._heard.update(beaten)  # after the names: a sign of life changes a row that is there, and makes none
        if said and not self._behind:
            await self._project(said)

    async def keep_trying(self) -> None:
        """Make up for what failed, though nobody writes again, and for what a tenure before this one left undone; note
        signs of life, many at a time."""
        heard_in = 0.0
        while True:
            if self._behind:
                await self._catch_up()
            if self._heard and heard_in <= 0:
                await self._hear()
                heard_in = _HEARTBEATS_S
            await asyncio.sleep(_AGAIN_S)
            heard_in -= _AGAIN_S
            await self._name(set(self._waiting))

    async def _name(self, agents: set[keys.AgentRef]) -> None:
        new = agents - self._known
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

    async def _project(self, names: Sequence[str]) -> None:
        try:
            await self._table.project_profiles(names, _PATIENCE_MS)
        except DataRefused as error:
            if len(names) > 1:  # one that PostgreSQL refuses does not hold up the others
                await self._project(names[: len(names) // 2])
                await self._project(names[len(names) // 2 :])
            else:
                log.error("the registry refuses what %s says of itself: %s", names[0], error)
        except CenoteError as error:
            log.warning("the registry is behind, trying again: %s", error)
            self._behind = True

    async def _catch_up(self) -> None:
        """Everything that the state holds. What comes meanwhile is projected by its own flush, or makes this come once
        more."""
        self._behind = False
        try:
            stale = await self._table.stale_profiles()
            await self._name(_refs(stale))
            for start in range(0, len(stale), _PAGE):
                await self._project(stale[start : start + _PAGE])
            await self._table.project_heartbeats(None)
        except CenoteError as error:
            log.warning("the registry is behind, trying again: %s", error)
            self._behind = True

    async def _hear(self) -> None:
        heard, self._heard = self._heard, set()
        try:
            await self._table.project_heartbeats(sorted(heard))
        except CenoteError as error:
            log.warning("signs of life could not be noted, trying again: %s", error)
            self._heard |= heard


def _refs(row_keys: Iterable[str]) -> set[keys.AgentRef]:
    """The agents whose names are keys of a reserved one; what is nobody's name was not written by us."""
    found = set()
    for key in row_keys:
        with suppress(RejectedError):
            found.add(keys.agent_ref(keys.from_sql_key(key)))
    return found
