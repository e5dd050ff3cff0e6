"""The classes of the face without `await`: each verb hands its twin's coroutine to the background thread.

A test compares the signatures with those of the originals; their docstrings are authoritative.
"""

import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar
from uuid import UUID

from cenote import agent as agents
from cenote import store as stores
from cenote import typed as typeds
from cenote.agent import At, Durability
from cenote.blocking.agent_life import AgentLife, WarmUp
from cenote.blocking.agents import Agents
from cenote.blocking.answers import Answers
from cenote.blocking.health import StoreHealth
from cenote.blocking.iteration import Iteration
from cenote.blocking.knowledge import Knowledge
from cenote.blocking.messages import Messages
from cenote.blocking.past import AgentPast, StorePast
from cenote.blocking.receipt import Receipt
from cenote.blocking.repairs import StoreRepair
from cenote.blocking.restores import AgentRestores, StoreRestores
from cenote.blocking.sessions import Sessions
from cenote.blocking.storage import DataStorage
from cenote.blocking.tasks import Tasks
from cenote.blocking.thread import LoopThread
from cenote.blocking.transactions import Transaction, waiting
from cenote.config import Config
from cenote.engine import counters
from cenote.engine.changes import Change
from cenote.engine.conflict_log import Conflict
from cenote.model.entry import Entry, Version
from cenote.routing import Category
from cenote.sql.transaction import Isolation

T = TypeVar("T")
_PAGE: Final = 256  # items of a finite iterator that one hand-over between the threads brings
_ABSENT: Any = object()


Condition = Version | Receipt | Entry | int | None


class AgentState(AgentLife, AgentPast, AgentRestores):
    """See `cenote.AgentState`. Get it from `store.agent()`; threads may share it."""

    def __init__(self, thread: LoopThread, agent: agents.AgentState) -> None:
        self._thread = thread
        self._agent = agent

    @property
    def name(self) -> str:
        """How the agent was named."""
        return self._agent.name

    @property
    def id(self) -> UUID:
        """The agent's UUID in PostgreSQL."""
        return self._agent.id

    def __repr__(self) -> str:
        return repr(self._agent)

    def put(
        self,
        key: str,
        value: object,
        *,
        ttl: timedelta | None = None,
        if_version: Condition = None,
        durability: Durability = "kv",
        replace: bool = False,
    ) -> Receipt:
        """Write a value; see `cenote.AgentState.put`."""
        work = self._agent.put(
            key, value, ttl=ttl, if_version=_condition(if_version), durability=durability, replace=replace
        )
        return Receipt(self._thread, self._thread.run(work))

    def delete(self, key: str, *, if_version: Condition = None) -> Receipt:
        """Delete a key; see `cenote.AgentState.delete`."""
        work = self._agent.delete(key, if_version=_condition(if_version))
        return Receipt(self._thread, self._thread.run(work))

    def update(
        self,
        key: str,
        change: Callable[[Any], object],
        *,
        default: Any = _ABSENT,
        into: type[Any] | None = None,
        deadline: timedelta | float | None = None,
    ) -> Entry:
        """Read, change, write back, again on conflict; see `cenote.AgentState.update`. `change` runs on the store's
        thread."""
        if default is _ABSENT:
            return self._thread.run(self._agent.update(key, change, into=into, deadline=deadline))
        return self._thread.run(self._agent.update(key, change, default=default, into=into, deadline=deadline))

    def merge(
        self,
        key: str,
        value: object,
        *,
        strategy: str | None = None,
        base: Entry | None = None,
        ttl: timedelta | None = None,
        deadline: timedelta | float | None = None,
    ) -> Entry:
        """Let a value meet what is there; see `cenote.AgentState.merge`."""
        work = self._agent.merge(key, value, strategy=strategy, base=base, ttl=ttl, deadline=deadline)
        return self._thread.run(work)

    def put_many(
        self,
        items: Mapping[str, object],
        *,
        ttl: timedelta | None = None,
        atomic: bool = False,
        if_version: Mapping[str, Version | Receipt | Entry | int] | None = None,
    ) -> dict[str, Receipt]:
        """Write several keys; see `cenote.AgentState.put_many`. `.done` of a PartialError holds `cenote.Receipt`s."""
        conditions = None if if_version is None else {key: _bare(given) for key, given in if_version.items()}
        done = self._thread.run(self._agent.put_many(items, ttl=ttl, atomic=atomic, if_version=conditions))
        return {key: Receipt(self._thread, receipt) for key, receipt in done.items()}

    def get(self, key: str, default: Any = None, *, into: type[Any] | None = None, at: At | None = None) -> Any:
        """The value, or `default`; see `cenote.AgentState.get`."""
        return self._thread.run(self._agent.get(key, default, into=into, at=at))

    def entry(self, key: str, *, into: type[Any] | None = None) -> Entry:
        """The value with its circumstances; see `cenote.AgentState.entry`."""
        return self._thread.run(self._agent.entry(key, into=into))

    def get_many(self, wanted: Iterable[str], *, into: type[Any] | None = None) -> dict[str, Any]:
        """The values of several keys, without the absent ones; see `cenote.AgentState.get_many`."""
        return self._thread.run(self._agent.get_many(wanted, into=into))

    def keys(self, prefix: str = "") -> Iteration[str]:
        """Every live key, once each; see `cenote.AgentState.keys`."""
        return Iteration(self._thread, self._agent.keys(prefix), page=_PAGE)

    def items(
        self, prefix: str = "", *, into: type[Any] | None = None, at: At | None = None
    ) -> Iteration[tuple[str, Any]]:
        """Every live key with its value; see `cenote.AgentState.items`."""
        return Iteration(self._thread, self._agent.items(prefix, into=into, at=at), page=_PAGE)

    def watch(
        self, prefix: str = "", *, since: Version | int | None = None, into: type[Any] | None = None
    ) -> Iteration[Entry]:
        """Changes as they happen; see `cenote.AgentState.watch`."""
        return Iteration(self._thread, self._agent.watch(prefix, since=since, into=into), page=1)

    def typed(self, key: str, cls: type[T]) -> "Typed[T]":
        """One key bound to a class; see `cenote.AgentState.typed`."""
        return Typed(self._thread, self._agent.typed(key, cls))


class Typed(Generic[T]):
    """One key of one agent, bound to a class."""

    def __init__(self, thread: LoopThread, typed: typeds.Typed[T]) -> None:
        self._thread = thread
        self._typed = typed

    def put(self, value: T, *, ttl: timedelta | None = None, if_version: Condition = None) -> Receipt:
        """See `AgentState.put`."""
        work = self._typed.put(value, ttl=ttl, if_version=_condition(if_version))
        return Receipt(self._thread, self._thread.run(work))

    def get(self, default: T | None = None) -> T | None:
        """See `AgentState.get`."""
        return self._thread.run(self._typed.get(default))

    def entry(self) -> Entry:
        """See `AgentState.entry`."""
        return self._thread.run(self._typed.entry())

    def update(
        self, change: Callable[[T], T], *, default: Any = ..., deadline: timedelta | float | None = None
    ) -> Entry:
        """See `AgentState.update`."""
        return self._thread.run(self._typed.update(change, default=default, deadline=deadline))

    def delete(self, *, if_version: Condition = None) -> Receipt:
        """See `AgentState.delete`."""
        return Receipt(self._thread, self._thread.run(self._typed.delete(if_version=_condition(if_version))))


class SwarmCounter:
    """See `cenote.SwarmCounter`. Get it from `store.counter()`; threads may share it."""

    def __init__(self, thread: LoopThread, counter: counters.SwarmCounter) -> None:
        self._thread = thread
        self._counter = counter

    @property
    def name(self) -> str:
        """How it was named."""
        return self._counter.name

    def __repr__(self) -> str:
        return repr(self._counter)

    def add(self, n: int = 1) -> int:
        """Add to it; the new total; see `cenote.SwarmCounter.add`."""
        return self._thread.run(self._counter.add(n))

    def value(self) -> int:
        """The total now; see `cenote.SwarmCounter.value`."""
        return self._thread.run(self._counter.value())


class Store(WarmUp, StoreHealth, StorePast, StoreRepair, StoreRestores):
    """See `cenote.Store`. Get it from `cenote.blocking.open()`; any number of threads may share it."""

    def __init__(self, thread: LoopThread, store: stores.Store) -> None:
        self._thread = thread
        self._store = store
        self._closed = False
        self._closing = threading.Lock()

    @property
    def config(self) -> Config:
        """The configuration it was opened with."""
        return self._store.config

    @property
    def servers(self) -> dict[str, Any] | None:
        """What runs embedded; see `cenote.Store.servers`."""
        return self._store.servers

    def inside(self) -> tuple[stores.Store, LoopThread]:
        """The async store and the thread on which it lives, for adapters that bring their own coroutines."""
        return self._store, self._thread

    def agent(self, agent_id: str | UUID) -> AgentState:
        """The state of one agent; see `cenote.Store.agent`."""
        return AgentState(self._thread, self._store.agent(agent_id))

    def counter(self, name: str) -> SwarmCounter:
        """A number that everybody may add to; see `cenote.Store.counter`."""
        return SwarmCounter(self._thread, self._store.counter(name))

    def counters(self, prefix: str = "") -> Iteration[tuple[str, int]]:
        """Every counter with its total; see `cenote.Store.counters`."""
        return Iteration(self._thread, self._store.counters(prefix), page=_PAGE)

    @property
    def agents(self) -> Agents:
        """Who the agents are, and who of them holds what; see `cenote.Store.agents`."""
        return Agents(self._thread, self._store.agents)

    @property
    def tasks(self) -> Tasks:
        """The queue; see `cenote.Store.tasks`."""
        return Tasks(self._thread, self._store.tasks)

    @property
    def messages(self) -> Messages:
        """What agents said to each other; see `cenote.Store.messages`."""
        return Messages(self._thread, self._store.messages)

    @property
    def sessions(self) -> Sessions:
        """What somebody does now; see `cenote.Store.sessions`."""
        return Sessions(self._thread, self._store.sessions)

    @property
    def cache(self) -> Answers:
        """Answers that are kept for a while; see `cenote.Store.cache`."""
        return Answers(self._thread, self._store.cache)

    def data(self, category: Category | str, *, agent: str | UUID | None = None) -> DataStorage:
        """The four verbs of a kind of data; see `cenote.Store.data`."""
        return DataStorage(self._thread, self._store.data(category, agent=agent))

    @property
    def knowledge(self) -> Knowledge:
        """What is known; see `cenote.Store.knowledge`."""
        return Knowledge(self._thread, self._store.knowledge)

    def transact(
        self,
        fn: Callable[[Transaction], T],
        *,
        isolation: Isolation = Isolation.REPEATABLE_READ,
        deadline: timedelta | float | None = None,
    ) -> T:
        """Run `fn(tx)` in a transaction, exactly once; see `cenote.Store.transact`. `fn` is a plain function here, and
        runs on a thread of its own."""
        work = self._store.transact(waiting(self._thread, fn), isolation=isolation, deadline=deadline)
        result: T = self._thread.run(work)
        return result

    def flush(self, timeout: timedelta | float | None = None) -> None:
        """Wait until everything acknowledged so far is in SQL; see `cenote.Store.flush`."""
        self._thread.run(self._store.flush(timeout))

    def watch(self, agents: str = "*", *, prefix: str = "", since: Version | int | None = None) -> Iteration[Entry]:
        """Changes of all agents that match; see `cenote.Store.watch`."""
        return Iteration(self._thread, self._store.watch(agents, prefix=prefix, since=since), page=1)

    def conflicts(
        self,
        *,
        agent: str | UUID | None = None,
        key: str | None = None,
        strategy: str | None = None,
        since: datetime | timedelta | float | None = None,
        limit: int = 100,
    ) -> list[Conflict]:
        """What happened when two writes met; see `cenote.Store.conflicts`."""
        work = self._store.conflicts(agent=agent, key=key, strategy=strategy, since=since, limit=limit)
        return self._thread.run(work)

    def changes(self, since: str | int | None = None) -> Iteration[Change]:
        """What reached SQL, in the order of the commits; see `cenote.Store.changes`."""
        return Iteration(self._thread, self._store.changes(since), page=1)

    def close(self) -> None:
        """Wait up to `flush.drain_ms` for PostgreSQL, then leave; see `cenote.Store.aclose`. From any thread; a second
        call waits for the first. In a forked child it does nothing."""
        if not self._thread.ours:
            return
        with self._closing:
            if self._closed:
                return
            self._closed = True
            try:
                self._thread.run(self._store.aclose())
            finally:
                self._thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed and self._thread.ours:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)


def _condition(given: Condition) -> Version | Entry | int | None:
    return None if given is None else _bare(given)


def _bare(given: Version | Receipt | Entry | int) -> Version | Entry | int:
    return given.version if isinstance(given, Receipt) else given
