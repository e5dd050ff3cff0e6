"""One agent's state: the verbs that a swarm's members use all day."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast
from uuid import UUID

from cenote import limits
from cenote.agent_past import AgentPast
from cenote.engine import entries
from cenote.engine.checkpoint import Checkpoint
from cenote.engine.entries import Target
from cenote.engine.machines import Machines
from cenote.engine.meeting import NOTHING, content_of
from cenote.engine.receipt import Receipt
from cenote.engine.watcher import Watch
from cenote.engine.writer import TOMBSTONE, Content
from cenote.errors import NotFoundError, PartialError, RejectedError
from cenote.model import key as keys
from cenote.model import value as values
from cenote.model.duration import seconds
from cenote.model.entry import Entry, Stored, Tier, Version, ttl_ms
from cenote.model.merging import Merging
from cenote.retry import Backoff
from cenote.typed import Typed

T = TypeVar("T")
Durability = Literal["kv", "sql"]
At = Checkpoint | UUID | str


class AgentState(AgentPast):
    """The state of one agent. Cheap to make; as many as you like may exist for one agent.

    Attributes:
        name: how the agent was named.
        id: its UUID in PostgreSQL (`agents.state.agent_id`).
    """

    def __init__(self, machines: Machines, agent: keys.AgentRef) -> None:
        super().__init__(machines, agent)
        self._targets: dict[str, Target] = {}

    @property
    def name(self) -> str:
        """How the agent was named."""
        return self._agent.text

    @property
    def id(self) -> UUID:
        """The agent's UUID in PostgreSQL."""
        return self._agent.id

    def __repr__(self) -> str:
        return f"AgentState({self._agent.text!r})"

    # --- writing --------------------------------------------------------------------------------------------

    async def put(
        self,
        key: str,
        value: object,
        *,
        ttl: timedelta | None = None,
        if_version: Version | Receipt | Entry | int | None = None,
        durability: Durability = "kv",
        replace: bool = False,
    ) -> Receipt:
        """Write a value; returns once it is acknowledged. A value that merges is merged with what is there; where
        another one stands by the key's resolver or by its clock, the receipt is that one's.

        Args:
            key: 1 to 512 characters.
            value: JSON types, tuple, set, frozenset, bytes, datetime, date, time, timedelta, Decimal, UUID, and
                dataclasses, pydantic models or Structs as plain data; 64 MiB at most.
            ttl: how long the value lives; None: for ever.
            if_version: write only if this is the key's version; 0: only if the key exists nowhere.
            durability: "kv" returns at JetStream's acknowledgement, "sql" after PostgreSQL's commit as well.
            replace: overwrite whatever is there: a value that merges, or one whose route has another resolver.

        Raises:
            RejectedError: a key or value that cannot be carried, or a plain value over one that this process knows to
                merge; nothing was written.
            ConflictError: `if_version` does not hold, or the key's resolver refuses; nothing was written.
            UnavailableError, BackpressureError: nothing was written, try again later.
            OutcomeUnknownError: the answer was lost; read before you write again.
            NotDurableError: acknowledged by KV, but not committed by PostgreSQL within `kv.deadline_ms`.
        """
        target = self._target(key)
        if durability not in ("kv", "sql"):
            raise RejectedError(f'durability: "kv" or "sql", not {durability!r}')
        if if_version is not None and isinstance(value, Merging) and not replace:
            wanted = _version(if_version)
            stored = await self._machines.meeting.put_if(target, value, self._expiry(ttl), wanted, self._backoff(None))
        elif if_version is not None:
            content = content_of(value, self._expiry(ttl))
            stored = await self._machines.writer.write_if(target, content, _version(if_version))
        elif not replace and self._machines.meeting.concerns(target, value):
            stored = await self._machines.meeting.put(target, value, self._expiry(ttl), self._backoff(None))
        else:
            stored = await self._machines.writer.write(target, content_of(value, self._expiry(ttl)))
        receipt = self._receipt(target, stored)
        if durability == "sql":
            await receipt.durable(self._core.config.kv.deadline_ms / 1000)
        return receipt

    async def delete(self, key: str, *, if_version: Version | Receipt | Entry | int | None = None) -> Receipt:
        """Delete a key; deleting an absent one is fine. The delete is a write like any other: it has a version, it
        flows to PostgreSQL, and nothing older can come back. Raises as `put`."""
        target = self._target(key)
        if if_version is None:
            stored = await self._machines.writer.write(target, TOMBSTONE)
        else:
            stored = await self._machines.writer.write_if(target, TOMBSTONE, _version(if_version))
        return self._receipt(target, stored)

    async def update(
        self,
        key: str,
        change: Callable[[Any], object],
        *,
        default: Any = NOTHING,
        into: type[Any] | None = None,
        deadline: timedelta | float | None = None,
    ) -> Entry:
        """Read, change, write back if nobody wrote meanwhile, else again; the change takes effect exactly once.

        Args:
            key: the key.
            change: takes the current value, returns the new one; pure and quick, for it may run several times. A
                value that merges may be changed in place: `lambda seen: seen.add("x")`.
            default: what `change` is given when the key is absent.
            into: a class to decode the current value to.
            deadline: how long to try; default `retry.deadline_ms`.

        Raises:
            NotFoundError: the key is absent and there is no default.
            ConflictError: others were faster until the deadline.
            OutcomeUnknownError: an answer was lost and the key has changed since; it happened at most once.
        """
        if inspect.iscoroutinefunction(change):
            raise RejectedError("change: a plain function is needed; it runs again on conflict and must not wait")
        meeting, target = self._machines.meeting, self._target(key)
        stored = await meeting.update(target, change, default, into, self._backoff(deadline))
        return await self._entry(key, stored, Tier.DISTRIBUTED_KV, into)

    async def merge(
        self,
        key: str,
        value: object,
        *,
        strategy: str | None = None,
        base: Entry | None = None,
        ttl: timedelta | None = None,
        deadline: timedelta | float | None = None,
    ) -> Entry:
        """Let a value meet what is there: what stands afterwards is returned, what was discarded is in the conflict
        log (`store.conflicts`).

        Args:
            key: the key.
            value: a value that merges, a `Clocked` one, or any other.
            strategy: one of `Strategy` or a registered name; default: by the value's type, else by the key's route.
            base: the entry that `value` was made from; if it is still there, nothing has met.
            ttl: how long the value lives; None: for ever.
            deadline: how long to try; default `retry.deadline_ms`.

        Raises:
            RejectedError: no such strategy, two types under one key, or a merge function that raised or returned what
                cannot be stored: nothing was written, both values are in the conflict log.
            UnresolvedError: nobody can decide; it carries both sides, nothing was written.
            ConflictError: the strategy refuses, or others were faster until the deadline.
            OutcomeUnknownError: an answer was lost and the key has changed since; it happened at most once.
        """
        target = self._target(key)
        stored = await self._machines.meeting.merge(
            target, value, strategy, base, self._expiry(ttl), self._backoff(deadline)
        )
        return await self._entry(key, stored, Tier.DISTRIBUTED_KV, None)

    async def put_many(
        self,
        items: Mapping[str, object],
        *,
        ttl: timedelta | None = None,
        atomic: bool = False,
        if_version: Mapping[str, Version | Receipt | Entry | int] | None = None,
    ) -> dict[str, Receipt]:
        """Write several keys, each on its own, or all or none; all are checked before the first is sent.

        Args:
            items: values by key.
            ttl: how long the values live; None: for ever.
            atomic: all or none, 1,000 keys at most; `get_many` and watches never show a part of it.
            if_version: with `atomic`: write only if these keys have these versions; 0: exists nowhere.

        Raises:
            RejectedError: one cannot be carried, or this NATS takes no atomic batches; nothing was written.
            PartialError: some were not acknowledged; `.done` holds receipts, `.failed` the errors. Never with `atomic`,
                which raises as `put`.
        """
        expires_ms = self._expiry(ttl)
        if atomic:
            pairs = [(self._target(key), value) for key, value in items.items()]
            expected = {key: _version(given) for key, given in (if_version or {}).items()}
            written = await self._machines.atomic.put(pairs, expires_ms, expected)
            return {target.key: self._receipt(target, one) for (target, _), one in zip(pairs, written, strict=True)}
        if if_version is not None:
            raise RejectedError("if_version: put_many takes it with atomic=True only")
        contents = [
            # What merges is encoded once it is settled: who encodes it before shares its unsettled changes.
            (self._target(key), value, None if isinstance(value, Merging) else content_of(value, expires_ms))
            for key, value in items.items()
        ]
        concerns = self._machines.meeting.concerns
        done: dict[str, Receipt] = {}
        failed: dict[str, BaseException] = {}
        for start in range(0, len(contents), limits.PUT_MANY_WINDOW):
            window = contents[start : start + limits.PUT_MANY_WINDOW]
            writes = [self._write(*one, expires_ms, meets=concerns(*one[:2])) for one in window]
            outcomes = await asyncio.gather(*writes, return_exceptions=True)
            for (target, _, _), outcome in zip(window, outcomes, strict=True):
                if isinstance(outcome, BaseException):
                    failed[target.key] = outcome
                else:
                    done[target.key] = outcome
        if failed:
            error = PartialError(f"{len(failed)} of {len(contents)} writes failed", done=done, failed=failed)
            raise error from next(iter(failed.values()))
        return done

    # --- reading --------------------------------------------------------------------------------------------

    async def get(self, key: str, default: Any = None, *, into: type[Any] | None = None, at: At | None = None) -> Any:
        """The value, the caller's own copy; `default` when the key is absent, deleted or expired.

        This process's own writes are seen at once, others' as soon as they are announced: usually within milliseconds,
        within 2 s if the announcement is lost. While NATS is silent, what memory holds is served for up to
        `memory.ttl_s`; `entry` says so by `.stale` after 3 s.

        Raises:
            UnavailableError: no tier that could know it answered within `kv.deadline_ms`.
            CodecError: the stored bytes are not what this version writes, or do not fit `into`.
            NotFoundError, ConsistencyError: the checkpoint `at` which it is asked for is unknown, or damaged.
        """
        if at is not None:
            return await self._get_at(key, default, into, at)
        target = self._targets.get(key) or self._target(key)
        core = self._core
        copy = core.cache.lookup(target.subject) if core.coherence.listening else None
        if copy is None:
            found = await self._machines.reader.read(target)
            if found is None:
                return default
            copy = found[0]
        else:
            core.counts.hits_l1 += 1
            if core.gone(copy):
                return default
        return await self._decode(copy, into) if copy.codec == entries.BLOB else _decode(copy, into)

    async def entry(self, key: str, *, into: type[Any] | None = None) -> Entry:
        """The value with its version, times, tier and writer. Raises NotFoundError, and as `get`."""
        target = self._target(key)
        core = self._core
        copy = core.cache.lookup(target.subject) if core.coherence.listening else None
        if copy is None:
            found = await self._machines.reader.read(target)
        else:
            core.counts.hits_l1 += 1
            found = None if core.gone(copy) else (copy, Tier.MEMORY_CACHE)
        if found is None:
            raise NotFoundError(f"{key!r} does not exist", key=key)
        return await self._entry(key, found[0], found[1], into)

    async def get_many(self, wanted: Iterable[str], *, into: type[Any] | None = None) -> dict[str, Any]:
        """The values of several keys, without the absent ones. Raises as `get`."""
        targets = {key: self._target(key) for key in wanted}
        found = await self._machines.reader.read_many(list(targets.values()))
        return {key: await self._decode(found[key][0], into) for key in targets if key in found}

    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Every live key that begins with `prefix`, once each, in no order; KV and SQL united."""
        async for key, _, _ in self._machines.reader.scan(self._agent, prefix):
            yield key

    async def items(
        self, prefix: str = "", *, into: type[Any] | None = None, at: At | None = None
    ) -> AsyncIterator[tuple[str, Any]]:
        """Every live key that begins with `prefix` with its value, once each, in no order; KV and SQL united. `at`: as
        it was at this checkpoint; then raises as `diff`."""
        if at is not None:
            async for pair in self._items_at(prefix, into, at):
                yield pair
            return
        async for key, stored, _ in self._machines.reader.scan(self._agent, prefix):
            yield key, await self._decode(stored, into)

    async def watch(
        self, prefix: str = "", *, since: Version | int | None = None, into: type[Any] | None = None
    ) -> AsyncIterator[Entry]:
        """Entries, deletes and expiries as they happen: at least once, per key in order, never a silent gap.

        Args:
            prefix: only keys that begin with it.
            since: None: from now on; 0: the live entries first; a version: what changed after it first.
            into: a class to decode values to.

        Raises:
            ExpiredError: `since` is not a position that can be resumed from.
        """
        watch = Watch(
            self._core,
            agent=self._agent,
            select=lambda _: True,
            prefix=prefix,
            since=_since(since),
            into=into,
        )
        async for entry in watch.events():
            yield entry

    def typed(self, key: str, cls: type[T]) -> Typed[T]:
        """One key bound to a class: a dataclass, a pydantic model or a msgspec Struct."""
        return Typed(self, key, cls)

    # --- within ---------------------------------------------------------------------------------------------

    def _target(self, key: str) -> Target:
        target = self._targets.get(key) if type(key) is str else None
        if target is None:
            target = self._core.target(self._agent, key)
            if len(self._targets) >= limits.SUBJECT_CACHE_KEYS_MAX:
                self._targets.clear()
            self._targets[key] = target
        return target

    async def _decode(self, stored: Stored, into: type[Any] | None) -> Any:
        if stored.codec == entries.BLOB:
            stored = await self._core.blobs.resolve(stored)
        return _decode(stored, into)

    def _backoff(self, deadline: timedelta | float | None) -> Backoff:
        limit_s, retry = seconds(deadline, "deadline"), self._core.config.retry
        return Backoff(retry, retry.deadline_ms if limit_s is None else limit_s * 1000)

    def _expiry(self, ttl: timedelta | None) -> int | None:
        return None if ttl is None else self._core.now_ms() + cast(int, ttl_ms(ttl))

    async def _write(
        self, target: Target, value: object, content: Content | None, expires_ms: int | None, *, meets: bool
    ) -> Receipt:
        """A receipt is bound to the connection of its own ack, not to that of the last of many (F-conn)."""
        if meets or content is None:
            stored = await self._machines.meeting.put(target, value, expires_ms, self._backoff(None))
        else:
            stored = await self._machines.writer.write(target, content)
        return self._receipt(target, stored)

    def _receipt(self, target: Target, stored: Stored) -> Receipt:
        return Receipt(target, stored, self._core)

    async def _entry(self, key: str, stored: Stored, tier: Tier, into: type | None) -> Entry:
        if stored.codec == entries.BLOB:
            stored = await self._core.blobs.resolve(stored)
        core = self._core
        stale = (tier is Tier.MEMORY_CACHE and not core.coherence) or (tier is Tier.RELATIONAL_DB and core.link.out)
        return Entry.of(stored, agent=self._agent.text, key=key, tier=tier, stale=stale, into=into)


def _decode(stored: Stored, into: type[Any] | None) -> Any:
    value = values.decode(stored.codec, stored.body)
    return value if into is None else values.decode_into(value, into)


def _version(given: Version | Receipt | Entry | int) -> Version | None:
    """What `if_version` means: a version, or None for "exists nowhere"."""
    if isinstance(given, Receipt | Entry):
        return given.version
    if isinstance(given, Version):
        return given
    if type(given) is int and given == 0:
        return None
    raise RejectedError(f"if_version: a Version, Receipt, Entry or 0 is needed, not {given!r}")


def _since(given: Version | int | None) -> Version | int | None:
    if given is None or isinstance(given, Version) or (type(given) is int and given == 0):
        return given
    raise RejectedError(f"since: None, 0 or a Version is needed, not {given!r}")
