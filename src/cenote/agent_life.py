"""One agent's life: its verbs that move state between the tiers."""

from collections.abc import Callable, Iterable
from datetime import timedelta

from cenote.engine.barrier import Barrier
from cenote.engine.bed import Slept
from cenote.engine.core import Core
from cenote.engine.hydrator import Hydrated, Progress
from cenote.engine.lifecycle import LifecycleEvent
from cenote.engine.machines import Machines
from cenote.errors import RejectedError
from cenote.lifecycle import Event, Phase
from cenote.model.duration import seconds
from cenote.model.key import AgentRef
from cenote.model.page import page_limit


class AgentLife:
    """The part of `AgentState` that brings an agent in and puts it aside."""

    def __init__(self, machines: Machines, agent: AgentRef) -> None:
        self._machines = machines
        self._core: Core = machines.core
        self._agent = agent

    async def hydrate(
        self, *, after: str | None = None, progress: Callable[[Progress], object] | None = None
    ) -> Hydrated:
        """Bring all keys that only SQL holds back into KV, a page at a time in the order of keys. The first ones can be
        read while the others come. May be cancelled at any moment: what has come stays.

        Args:
            after: go on behind this key: the `.after` that `progress` was told last.
            progress: called after each page.

        Raises:
            UnavailableError: a tier went away; what has come stays, `progress` knows how far that is.
            BackpressureError: KV is nearly full; the same.
        """
        return await self._machines.hydration.whole(self._agent, after, progress)

    async def prefetch(
        self,
        prefix: str = "",
        *,
        keys: Iterable[str] | None = None,
        after: str | None = None,
        progress: Callable[[Progress], object] | None = None,
    ) -> Hydrated:
        """The same for the keys that begin with `prefix`, or for those that are listed. Raises as `hydrate`,
        RejectedError for what cannot be a key."""
        if keys is None:
            return await self._machines.hydration.prefix(self._agent, prefix, after, progress)
        if prefix or after is not None:
            raise RejectedError("prefetch: either keys, or a prefix")
        return await self._machines.hydrator.some(self._agent, keys)

    async def flush(self, timeout: timedelta | float | None = None) -> None:
        """Wait until all acknowledged writes of this agent, by anyone, are in SQL.

        Raises:
            NotDurableError: not within `timeout`; nothing is lost.
            OutcomeUnknownError: the connection to NATS was replaced meanwhile; call it again.
        """
        async with self._machines.lifecycle.noted(self._agent, Event.FLUSH, Event.FLUSHED):
            await Barrier(self._core).agent(self._agent, seconds(timeout, "timeout"))

    async def phase(self) -> Phase:
        """Where this agent stands, for all processes: "cold", "hydrating", "active", "flushing" or "expired". Nobody
        who reads or writes asks for it. UnavailableError when a tier cannot be asked."""
        return await self._machines.lifecycle.phase(self._agent)

    async def sleep(self, timeout: timedelta | float | None = None) -> Slept:
        """Put this agent aside: when all of it is in PostgreSQL, it leaves KV and the memory of this process. That
        takes two seconds or more, for nothing younger ever leaves KV. What is written meanwhile stays there; the next
        read brings its key back. Sleeping agents may sleep again.

        Args:
            timeout: how long to wait for PostgreSQL; None: as long as it takes.

        Raises:
            LifecycleError: somebody else hydrates this agent or puts it aside, all the time; it names what is legal.
            NotDurableError: not within `timeout`; nothing is lost, and nothing has left KV.
            OutcomeUnknownError: the connection to NATS was replaced meanwhile; call it again.
            UnavailableError: a tier does not answer; call it again.
        """
        return await self._machines.bed.sleep(self._agent, seconds(timeout, "timeout"))

    async def lifecycle_events(self, limit: int = 100) -> list[LifecycleEvent]:
        """What was done with this agent on purpose, the newest first; the flush in the background is not among it.
        UnavailableError."""
        return await self._machines.lifecycle.events(self._agent, page_limit(limit))
