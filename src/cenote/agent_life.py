"""One agent's life: its verbs that move state between the tiers."""

from datetime import timedelta

from cenote.engine.barrier import Barrier
from cenote.engine.core import Core
from cenote.engine.hydrator import Hydrated
from cenote.engine.machines import Machines
from cenote.model import key as keys
from cenote.model.duration import seconds


class AgentLife:
    """The part of `AgentState` that brings an agent in and puts it aside."""

    def __init__(self, machines: Machines, agent: keys.AgentRef) -> None:
        self._machines = machines
        self._core: Core = machines.core
        self._agent = agent

    async def hydrate(self) -> Hydrated:
        """Bring all keys that only SQL holds back into KV. Raises UnavailableError, BackpressureError."""
        return await self._machines.hydrator.agent(self._agent)

    async def flush(self, timeout: timedelta | float | None = None) -> None:
        """Wait until all acknowledged writes of this agent, by anyone, are in SQL.

        Raises:
            NotDurableError: not within `timeout`; nothing is lost.
            OutcomeUnknownError: the connection to NATS was replaced meanwhile; call it again.
        """
        await Barrier(self._core).agent(self._agent, seconds(timeout, "timeout"))
