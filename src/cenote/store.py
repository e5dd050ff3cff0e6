"""The store: opens servers, connections and machines, and closes them in the right order."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

from cenote import storage
from cenote.agent import AgentState
from cenote.config import Config
from cenote.embedded.servers import Servers
from cenote.engine.barrier import Barrier
from cenote.engine.changes import Change, Changes
from cenote.engine.checkpoint import Checkpoint
from cenote.engine.checkpoint_draft import wish
from cenote.engine.conflict_log import Conflict, wanted
from cenote.engine.counters import SwarmCounter
from cenote.engine.hydrator import Hydrated
from cenote.engine.life_feed import LifeFeed
from cenote.engine.lifecycle import LifecycleEvent
from cenote.engine.machines import Machines, reading_only
from cenote.engine.restored import Restored
from cenote.engine.transfer import Imported
from cenote.engine.watcher import Watch, selector
from cenote.errors import CenoteError, NotDurableError, RejectedError
from cenote.health.face import StoreHealth
from cenote.limits import WARM_UP_AT_ONCE_MAX
from cenote.model.duration import seconds
from cenote.model.entry import Entry, Version
from cenote.model.key import RESERVED_AGENTS, agent_ref
from cenote.opening import open_machines
from cenote.repositories.agents import Agents
from cenote.repositories.cached import Answers
from cenote.repositories.knowledge import Knowledge
from cenote.repositories.messages import Messages
from cenote.repositories.sessions import Sessions
from cenote.repositories.tasks import Tasks
from cenote.routing import FLOW, KV, VECTOR, Category, Route, routes
from cenote.sql.operations import transact_once
from cenote.sql.pool import Database
from cenote.sql.transaction import Isolation, Transaction
from cenote.storage import DataStorage
from cenote.store_repair import StoreRepair

T = TypeVar("T")

log = logging.getLogger("cenote")


class Store(StoreHealth, StoreRepair):
    """One open store. Get it from `cenote.open()`; one per process is enough, any number of tasks may share it."""

    def __init__(self, config: Config, machines: Machines, servers: Servers | None) -> None:
        self.config = config
        self._machines = machines
        self._core = machines.core
        self._servers = servers
        self._closed = False
        spans = machines.core.spans
        self._agent_class = AgentState if spans is None else spans.verbs_of(AgentState)

    def agent(self, agent_id: str | UUID) -> AgentState:
        """The state of one agent: named by a UUID (or its canonical lower-case text), or by any other text of 1 to
        200 characters, compared exactly. Costs nothing and asks no server. RejectedError when it cannot be a name."""
        agent = agent_ref(agent_id)
        reserved = RESERVED_AGENTS.get(agent)
        machines = self._machines if reserved is None else reading_only(self._machines, reserved)
        return self._agent_class(machines, agent)

    @cached_property
    def agents(self) -> Agents:
        """Who the agents are, and where to look for them."""
        return Agents(self._machines)

    @cached_property
    def tasks(self) -> Tasks:
        """The queue: what is to be done, by whom, and what became of it."""
        return Tasks(self._machines)

    @cached_property
    def messages(self) -> Messages:
        """What agents said to each other."""
        return Messages(self._machines)

    @cached_property
    def sessions(self) -> Sessions:
        """What somebody does now, until he has been idle for too long."""
        return Sessions(self._machines)

    @cached_property
    def cache(self) -> Answers:
        """Answers that are dear to make, kept for a while for everybody."""
        return Answers(self._machines)

    @cached_property
    def knowledge(self) -> Knowledge:
        """Facts, found by what they mean, by their words and by what is said about them."""
        return Knowledge(self._machines)

    def data(self, category: Category | str, *, agent: str | UUID | None = None) -> DataStorage:
        """The four verbs that all kinds of data have in common, for one kind, along its route; asks no server.

        Args:
            category: a `Category`, or the name of one that was registered.
            agent: whose state, where the route is the flow; None: that of an agent of the category's name.

        Raises:
            RejectedError: there is no such category, or its route knows no agents.
        """
        name = category.name if isinstance(category, Category) else category
        route = self._routes.get(name)
        if route is None:
            raise RejectedError(f"category: there is no {name!r}", hint=f"there are {', '.join(self._routes)}")
        if route.tiers == FLOW:
            return storage.StateData(self.agent(name if agent is None else agent), self.agents, route)
        if agent is not None:
            raise RejectedError(f"agent: {name} does not belong to agents")
        if route.tiers == KV:
            own = name == Category.SESSION_DATA.name
            return storage.SessionData(self.sessions if own else Sessions(self._machines, within=name), route)
        if name == Category.TASK_INFO.name:
            return storage.TaskData(self.tasks, name)
        if name == Category.MESSAGE_LOG.name:
            return storage.MessageData(self.messages, name)
        return storage.KnowledgeData(self.knowledge, name, "hybrid" if route.tiers == VECTOR else "text")

    @cached_property
    def _routes(self) -> dict[str, Route]:
        return routes(self.config.routes.override)

    async def transact(
        self,
        fn: Callable[[Transaction], Awaitable[T]],
        *,
        isolation: Isolation = Isolation.REPEATABLE_READ,
        deadline: timedelta | float | None = None,
    ) -> T:
        """Run `fn(tx)` in a transaction on PostgreSQL and commit it, exactly once; the result of `fn`.

        Args:
            fn: a coroutine function. It may run several times, so it must have no effects outside of the transaction;
                an exception of its own rolls back and comes out as it is.
            isolation: what the levels prevent is in docs/transactions.md.
            deadline: for all runs together; None: `retry.deadline_ms`.

        Raises:
            TransactionError, UnavailableError: the deadline is spent; nothing was written.
            OutcomeUnknownError: the answer to COMMIT was lost, and PostgreSQL could not be asked before the deadline.
            PoolTimeoutError: all connections are in use.
            RejectedError: `fn` is no coroutine function, or this is inside of another transaction.
        """
        if not isinstance(isolation, Isolation):
            raise RejectedError(f"isolation: a cenote.Isolation is needed, not {isolation!r}")
        limit_s, retry = seconds(deadline, "deadline"), self.config.retry
        deadline_ms = retry.deadline_ms if limit_s is None else limit_s * 1000
        return await transact_once(self._core.db, fn, isolation, deadline_ms)

    async def checkpoint(
        self,
        wanted: Sequence[str | UUID],
        label: str | None = None,
        *,
        metadata: object = None,
        keep: bool = False,
        deadline: timedelta | float | None = None,
    ) -> list[Checkpoint]:
        """Keep what several agents are at one moment, all or none; in their order. Arguments and errors are those of
        `AgentState.checkpoint`."""
        deadline_s = seconds(deadline, "deadline")
        return await self._machines.checkpoints.create_many(
            [agent_ref(one) for one in wanted], wish(label, metadata, keep=keep),
            None if deadline_s is None else deadline_s * 1000,
        )  # fmt: skip

    async def restore(self, checkpoints: Iterable[Checkpoint]) -> list[Restored]:
        """Make several agents again what these checkpoints hold, one for each, all together: at once where all that
        differs fits into one atomic batch, else clearly in progress. See `AgentState.restore`."""
        wanted = [(agent_ref(one.agent), one) for one in checkpoints]
        return await self._machines.restorer.restore(wanted) if wanted else []

    async def import_agent(self, lines: AsyncIterable[bytes] | Iterable[bytes]) -> Imported:
        """Take an agent that `agent.export` wrote: its checkpoints, and its keys as new writes.

        Raises:
            CodecError: it is no such file, or a damaged one; the line is named, and nothing of it is to be seen.
            UnknownFormat: a newer cenote wrote it.
            RejectedError: the agent has keys or checkpoints here.
            UnavailableError: the servers went away; where the checkpoints are there already, restore the newest.
        """
        return await self._machines.transfer.imported(lines)

    def counter(self, name: str) -> SwarmCounter:
        """A number that everybody may add to at once, named by 1 to 512 characters. Costs nothing and asks no server.
        RejectedError when it cannot be a name."""
        return SwarmCounter(self._machines.counters, name)

    async def counters(self, prefix: str = "") -> AsyncIterator[tuple[str, int]]:
        """Every counter whose name begins with `prefix`, with its total, in no order. UnavailableError when NATS cannot
        be reached."""
        async for name, total in self._machines.counters.totals(prefix):
            yield name, total

    async def flush(self, timeout: timedelta | float | None = None) -> None:
        """Wait until everything acknowledged so far, by anyone, is in SQL.

        Raises:
            NotDurableError: not within `timeout`; nothing is lost.
            OutcomeUnknownError: the connection to NATS was replaced meanwhile; call it again.
        """
        timeout_s, began = seconds(timeout, "timeout"), time.monotonic()
        await Barrier(self._core).everything(timeout_s)
        left_s = None if timeout_s is None else max(0.0, timeout_s - (time.monotonic() - began))
        await self._machines.counter_flush.everything(left_s)

    async def warm_up(
        self,
        agents: Iterable[str | UUID],
        *,
        at_once: int = 16,
        progress: Callable[[str, Hydrated], object] | None = None,
    ) -> dict[str, Hydrated]:
        """Bring many agents back into KV, so many side by side; what came of each, by its name. `progress` is called
        after each of them.

        Raises:
            PartialError: `.failed` names those that were not hydrated, with why; the others were.
            UnavailableError: PostgreSQL does not answer; those that came stay.
        """
        if not 1 <= at_once <= WARM_UP_AT_ONCE_MAX:
            raise RejectedError(f"at_once: 1 to {WARM_UP_AT_ONCE_MAX}, not {at_once}")
        refs = list(dict.fromkeys(agent_ref(one) for one in agents))
        return await self._machines.hydration.many(refs, at_once, progress)

    async def watch(
        self, agents: str = "*", *, prefix: str = "", since: Version | int | None = None
    ) -> AsyncIterator[Entry]:
        """Entries, deletes and expiries of all agents whose name matches the shell-style pattern; see
        `AgentState.watch`."""
        watch = Watch(self._core, agent=None, select=selector(agents), prefix=prefix, since=since)
        async for entry in watch.events():
            yield entry

    async def conflicts(
        self,
        *,
        agent: str | UUID | None = None,
        key: str | None = None,
        strategy: str | None = None,
        since: datetime | timedelta | float | None = None,
        limit: int = 100,
    ) -> list[Conflict]:
        """What happened when two writes met, the newest first; in SQL it is the view `agents.conflicts`.

        Args:
            agent, key, strategy: only those of this agent, key or strategy.
            since: not before: an aware datetime, or how long ago.
            limit: so many at most.

        Raises:
            RejectedError: an argument cannot be meant.
            UnavailableError: not all of it can be read now.
        """
        return await self._machines.conflicts.find(wanted(self._core.now_ms(), agent, key, strategy, since, limit))

    async def changes(self, since: str | int | None = None) -> AsyncIterator[Change]:
        """What reached SQL, in the order of the commits, at least once; writes that SQL never saw, because newer ones
        of the key overtook them in KV, are not among it.

        Args:
            since: the `.position` of the last change that was dealt with; None: from now; 0: all that is still kept,
                at least `flush.changes_s`.

        Raises:
            ExpiredError: nobody can tell what came after `since`: it is too long ago, or PostgreSQL has gone back in
                time since. Never a silent gap.
            RejectedError: `since` is no position.
            UnavailableError: PostgreSQL cannot be reached to begin with; later the feed waits for it.
        """
        async for change in Changes(self._core, since).events():
            yield change

    async def lifecycle_events(
        self, agents: str = "*", since: str | int | None = None
    ) -> AsyncIterator[LifecycleEvent]:
        """What is done on purpose with agents whose name matches the shell-style pattern, as it happens, each event
        once and in order. `since`: the `.position` of the last one; None: from now; 0: all of the last 30 days. Raises
        ExpiredError, RejectedError and UnavailableError as `changes`."""
        async for event in LifeFeed(self._core, agents, since).events():
            yield event

    @property
    def servers(self) -> dict[str, Any] | None:
        """What runs embedded: pids, addresses, data directory; None when both servers are given by URL."""
        return None if self._servers is None else self._servers.info()

    async def aclose(self) -> None:
        """Wait up to `flush.drain_ms` for this process's own writes to reach SQL, then leave. What is not there by
        then is safe in KV. The last process that leaves stops embedded servers."""
        if self._closed:
            return
        self._closed = True
        core = self._core
        drain_s = self.config.flush.drain_ms / 1000
        if drain_s and core.link.connected:
            try:
                await self._drain(drain_s)
            except NotDurableError:
                log.warning("left before PostgreSQL had everything; the rest is safe in KV")
            except CenoteError as error:
                log.warning("left without waiting for PostgreSQL: %s", error)
        await close_machines(self._machines, self._core.db)
        if self._servers is not None:
            await self._servers.release()

    async def _drain(self, drain_s: float) -> None:
        core, machines, began = self._core, self._machines, time.monotonic()
        if core.own_sequence:
            if await self._nobody_flushes():
                log.warning("left while no process flushes; what PostgreSQL lacks is safe in KV")
                return
            await Barrier(core).everything(drain_s, up_to=core.own_sequence)
        if machines.counters.counted:
            await machines.counter_flush.everything(max(0.0, drain_s - (time.monotonic() - began)))

    async def _nobody_flushes(self) -> bool:
        board = await self._machines.lease.read()
        alive = board is not None and board.alive(self._core.now_ms())
        return self._machines.flusher is None and not alive

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def close_machines(machines: Machines, db: Database) -> None:
    """Stop in the order of the flow: nobody writes, nobody flushes, nobody listens, the connections go."""
    if machines.flusher is not None:
        await machines.flusher.stop()
    await machines.core.close()
    await machines.core.link.close()
    await db.close()


class Opening:
    """What `cenote.open()` returns: `async with` it, or `await` it and call `aclose()` yourself."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._store: Store | None = None

    def __await__(self) -> Generator[Any, None, Store]:
        return self._open().__await__()

    async def __aenter__(self) -> Store:
        self._store = await self._open()
        return self._store

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._store is not None:
            await asyncio.shield(self._store.aclose())

    async def _open(self) -> Store:
        machines, servers = await open_machines(self._config)
        log.debug("store open in process %d", os.getpid())
        return Store(machines.core.config, machines, servers)
