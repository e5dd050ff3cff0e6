"""Which agents have expired, and which have come back: a look now and then by the process that flushes.

The evictor lets nothing stay in KV that was idle for `state.ttl_s`, and nothing leave that SQL lacks. So an agent of
which KV holds nothing any more has expired, and one that rested and is in KV again was woken by whoever wrote or read.
"""

import asyncio
from uuid import UUID

from cenote import limits, points
from cenote.engine.core import Core
from cenote.engine.lifecycle import Lifecycle
from cenote.lifecycle import Event, Phase
from cenote.model import key as keys
from cenote.sql.lifecycle import Candidate

_LOOKS = 16
_FORGET_ROWS = 5_000


class Expiry:
    """Writes down what happened to agents without anybody's doing."""

    def __init__(self, core: Core, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self.every_s = min(600.0, max(1.0, core.config.state.ttl_s / 4))

    async def tend(self) -> None:
        """Look at all agents once."""
        table, last = self._lifecycle.table, UUID(int=0)
        while page := await table.candidates(last, limits.LIFE_PAGE_AGENTS):
            await self._look(page)
            last = page[-1].agent_id
        while await table.forget(limits.LIFE_EVENTS_S, _FORGET_ROWS) == _FORGET_ROWS:
            pass

    async def _look(self, page: list[Candidate]) -> None:
        found = [(one, keys.agent_ref(keys.from_sql_key(one.name))) for one in page]
        held = await self._held([ref for _, ref in found])
        woken = {one.agent_id: one.token for one, ref in found if ref in held and one.phase in ("cold", "expired")}
        if woken:
            await self._lifecycle.table.wake(woken)
        idle = [ref for one, ref in found if ref not in held and one.phase not in ("cold", "expired")]
        if idle:
            await self._expire(idle)

    async def _held(self, agents: list[keys.AgentRef]) -> set[keys.AgentRef]:
        held: set[keys.AgentRef] = set()
        for start in range(0, len(agents), _LOOKS):
            some = agents[start : start + _LOOKS]
            answers = await asyncio.gather(*(self._lifecycle.held(agent) for agent in some))
            held |= {agent for agent, answer in zip(some, answers, strict=True) if answer}
        return held

    async def _expire(self, idle: list[keys.AgentRef]) -> None:
        """Under the lease, and after another look: whoever hydrates one meanwhile has the lease, or is seen."""
        async with self._lifecycle.shared(idle, Event.EXPIRE, Event.EXPIRED) as work:
            if points.armed:
                await points.hit("expire.begun")
            came = await self._held([agent for agent in idle if agent.id in work.held])
            back = {agent.id: work.held.pop(agent.id) for agent in came}
            if back:
                await self._lifecycle.table.end(back, Event.FAILED, Phase.ACTIVE, None)
            if points.armed:
                await points.hit("expire.decided")
