"""Who works on an agent as a whole, for all processes: a lease with a fencing token in SQL, and what was done, written
down (`cenote.lifecycle` has the table).

Only what is done on purpose asks here. Reads, writes and the flush in the background never do: that an agent which was
put aside is in KV again is seen by looking there, and written down by and by.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from cenote import limits
from cenote.engine.core import Core, reading
from cenote.errors import CenoteError, LifecycleError
from cenote.lifecycle import TABLE, Event, Phase, after, derived, illegal
from cenote.model import key as keys
from cenote.model.entry import Version
from cenote.retry import Backoff
from cenote.sql.lifecycle import LifecycleTable, Told

log = logging.getLogger("cenote.engine")

_POLL_S = 0.05
_LAST_WORD_S = 2.0
_NUMBER_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleEvent:
    """What was done with an agent on purpose.

    Attributes:
        event: hydrate, sleep, expire, wake, flush, checkpoint, restore, fork; and how it ended: hydrated, slept, ….
        phase: what it led to; None: it changed nothing.
        token: the fencing token of whoever did it, if that needed one.
        holder: the process that began it.
        details: numbers, by name.
        at: PostgreSQL's time.
        agent: whose; its UUID while PostgreSQL does not know its name yet.
        position: give it to `since` of `store.lifecycle_events`, to go on behind this event.
    """

    event: Event
    phase: Phase | None
    token: int | None
    holder: str | None
    details: dict[str, Any]
    at: datetime
    agent: str
    position: str

    @classmethod
    def of(cls, row: Told, agent: str) -> "LifecycleEvent":
        """A row as users see it."""
        return cls(
            event=Event(row.event), phase=None if row.phase is None else Phase(row.phase), token=row.token,
            holder=row.holder, details={} if row.details is None else json.loads(row.details), at=row.at, agent=agent,
            position=str(Version(*row.id)),
        )  # fmt: skip


@dataclass
class Work:
    """Agents of which this process has the lease, and what will be written down of what it did."""

    table: LifecycleTable
    held: dict[UUID, int]
    details: dict[str, Any] = field(default_factory=dict)

    async def demand(self) -> None:
        """The lease is still ours, of every agent: LifecycleError when somebody else took one over meanwhile."""
        kept = await self.table.renew(self.held, limits.LIFE_LEASE_MS)
        if kept != self.held.keys():
            raise LifecycleError("another process has taken this agent over", hint="this one was silent for too long")

    async def keep(self) -> None:
        """Renew until cancelled; who cannot is not told so here, but by `demand`."""
        while True:
            await asyncio.sleep(limits.LIFE_RENEW_MS / 1000)
            with contextlib.suppress(CenoteError):
                await self.table.renew(self.held, limits.LIFE_LEASE_MS)


class Lifecycle:
    """The phases of this store's agents."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.table = LifecycleTable(core.db)

    async def phase(self, agent: keys.AgentRef) -> Phase:
        """Where an agent stands. UnavailableError when a tier cannot be asked."""
        row = (await self.table.rows([agent.id])).get(agent.id)
        held = await self.held(agent)
        if row is None:
            return derived(Phase.COLD, at_work=False, held=held)
        return derived(Phase(row.phase), at_work=row.holder is not None and row.alive, held=held)

    async def held(self, agent: keys.AgentRef) -> bool:
        """Whether KV holds anything of it, as the leader has it."""
        with reading():
            return await self._core.stream.leader_next(self._core.agent_filter(agent), 1) is not None

    async def events(self, agent: keys.AgentRef, limit: int) -> list[LifecycleEvent]:
        """What was done with it, the newest first."""
        rows = await self.table.events(agent.id, _NUMBER_MAX, limit)
        return [LifecycleEvent.of(row, agent.text) for row in rows]

    async def record(self, agent: keys.AgentRef, event: Event, **details: Any) -> None:
        """Note what was done without a lease. It is done, whether it can be noted or not."""
        try:
            await self.table.record(agent.id, event, json.dumps(details) if details else None)
        except CenoteError as error:
            log.warning("%s of %s could not be noted: %s", event, agent.text, error)

    @asynccontextmanager
    async def sole(self, agent: keys.AgentRef, event: Event, done: Event, deadline_ms: float) -> AsyncIterator[Work]:
        """Do something that nobody else may do to this agent at the same time; waits while somebody does.

        Raises:
            LifecycleError: somebody was at work until the deadline; it names what is legal meanwhile.
            UnavailableError: PostgreSQL does not answer.
        """
        backoff = Backoff(self._core.config.retry, deadline_ms)
        while True:
            work = await self._begin([agent], event)
            if work.held:
                break
            if backoff.left_ms <= _POLL_S * 1000:
                row = (await self.table.rows([agent.id])).get(agent.id)
                raise illegal(Phase.COLD if row is None else Phase(row.phase), event)
            await asyncio.sleep(_POLL_S)
        async with self._at(work, event, done):
            yield work

    @asynccontextmanager
    async def shared(self, agents: Sequence[keys.AgentRef], event: Event, done: Event) -> AsyncIterator[Work]:
        """Do something that others may do to the same agents, too: of those of which somebody has the lease nothing is
        written down."""
        work = await self._begin(agents, event)
        async with self._at(work, event, done):
            yield work

    @asynccontextmanager
    async def noted(self, agent: keys.AgentRef, event: Event, done: Event) -> AsyncIterator[None]:
        """The same for what happens whether it can be noted or not."""
        work = Work(self.table, {})
        try:
            async with asyncio.timeout(_LAST_WORD_S):
                work = await self._begin([agent], event)
        except (CenoteError, TimeoutError) as error:
            log.debug("%s of %s could not be noted: %s", event, agent.text, error)
        async with self._at(work, event, done, surely=False):
            yield

    async def _begin(self, agents: Iterable[keys.AgentRef], event: Event) -> Work:
        names = {agent.id: keys.sql_key(agent.text) for agent in agents}
        phase = after(Phase.ACTIVE, event)
        held = await self.table.begin(names, event, phase, self._core.writer_id, limits.LIFE_LEASE_MS)
        return Work(self.table, held)

    @asynccontextmanager
    async def _at(self, work: Work, event: Event, done: Event, *, surely: bool = True) -> AsyncIterator[None]:
        if not work.held:
            yield
            return
        during = after(Phase.ACTIVE, event)
        renewing = asyncio.create_task(work.keep(), name="cenote-lifecycle")
        try:
            yield
        except BaseException as error:
            renewing.cancel()
            work.details["error"] = type(error).__name__
            with contextlib.suppress(CenoteError, TimeoutError):  # the lease ends by itself
                async with asyncio.timeout(_LAST_WORD_S):
                    await self._end(work, during, Event.FAILED)
            raise
        renewing.cancel()
        try:
            await self._end(work, during, done)
        except CenoteError:  # the lease ends by itself
            if surely:
                raise

    async def _end(self, work: Work, during: Phase, event: Event) -> None:
        details = json.dumps(work.details) if work.details else None
        await self.table.end(work.held, event, TABLE[during, event], details)
