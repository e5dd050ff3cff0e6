"""Writes that build on what is there: changes, merging values, and two writes that meet under one key (I12; flow rules
6 and 16; `conflict/`, `model/merging/`).

Each is a compare-and-set over a state that is believed (F-wait, F-mark), so nothing is ever merged with an older copy
of what SQL or another server still has newer, and a lost race is decided anew. What a decision discards stands in the
conflict log, acknowledged, before the decision is written: a process that dies between the two has logged what did not
happen, never the other way round.
"""

import inspect
from collections.abc import Awaitable, Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

from cenote.conflict import RESOLVERS, Resolution, Side, Strategy, resolve, strategy_of
from cenote.engine import entries
from cenote.engine.blobs import Placed
from cenote.engine.conflict_log import ConflictLog, Outcome
from cenote.engine.contention import Contention
from cenote.engine.core import Core
from cenote.engine.entries import Target
from cenote.engine.turns import Turns
from cenote.engine.writer import Base, Content, Writer, version_conflict
from cenote.errors import ConflictError, NotFoundError, RejectedError, UnresolvedError
from cenote.model import entry
from cenote.model import value as values
from cenote.model.clock import HybridClock
from cenote.model.clocked import Clocked
from cenote.model.entry import Entry, Stored, Version
from cenote.model.merging import Actors, Merging
from cenote.retry import Backoff

Make = Callable[[Base, str], Awaitable["Next | None"]]

NOTHING: Any = object()
_SEEN_MAX = 65_536
_MEETS = (Merging, Clocked)  # a union, built anew each time, would double what the question costs a put


class Next(NamedTuple):
    """What an attempt wants to write; `settled` is the merging value in it, under the name `actor` of this process."""

    content: Content
    settled: Merging | None = None
    actor: str = ""


class Meeting:
    """Changes and merges of one process."""

    def __init__(self, core: Core, writer: Writer, log: ConflictLog) -> None:
        self._core = core
        self._cache = core.cache
        self._writer = writer
        self._log = log
        self._actors = Actors(core.writer_id)
        self._turns = Turns()
        self._contention = Contention(core.config.retry)
        self._default = core.config.state.resolver
        self._patterns = list(core.config.state.resolvers.items())
        self._routed = bool(self._patterns) or self._default != Strategy.LAST_WRITE_WINS
        self._merging: set[str] = set()  # subjects at which this process has met values that merge

    # --- whether a put has to meet what is there --------------------------------------------------------------

    def concerns(self, target: Target, value: object) -> bool:
        """Whether a put of this value is more than the newest write: its own type or the key's route says so, or this
        process knows of a merging value there. Nothing is read for it: a plain put pays a look into L1."""
        if isinstance(value, _MEETS):
            return True
        if self._routed and self.route(target.key) != Strategy.LAST_WRITE_WINS:
            return True
        return self._cache.merging(target.subject) or target.subject in self._merging

    def route(self, key: str) -> str:
        """The resolver that the configuration names for a key: the first pattern that fits, else the default."""
        return next((name for pattern, name in self._patterns if fnmatchcase(key, pattern)), self._default)

    # --- verbs ------------------------------------------------------------------------------------------------

    async def update(
        self, target: Target, change: Callable[[Any], object], default: Any, into: type | None, backoff: Backoff
    ) -> Stored:
        """See `AgentState.update`."""

        async def make(base: Base, _: str) -> Next:
            stored = base.stored
            if stored is None and default is NOTHING:
                raise NotFoundError(f"{target.key!r} does not exist", key=target.key, hint="give update() a default")
            current = None if stored is None else await self._value(stored)
            given = default if stored is None else current
            if isinstance(given, Merging):
                given = given.copy()
            elif stored is not None and into is not None:
                given = values.decode_into(given, into)
            result = change(given)
            if inspect.isawaitable(result):
                raise RejectedError("change: it returned an awaitable; a plain function is needed")
            if result is None and isinstance(given, Merging):
                result = given  # changed in place
            return self._next(target, current, result, None if stored is None else stored.expires_ms)

        return await self._write(target, make, backoff)

    async def put(self, target: Target, value: object, expires_ms: int | None, backoff: Backoff) -> Stored:
        """Put a value that `concerns` what is there."""
        strategy = strategy_of(value) or self.route(target.key)
        if strategy != Strategy.LAST_WRITE_WINS or isinstance(value, Clocked):
            return await self.merge(target, value, strategy, None, expires_ms, backoff)
        content = content_of(value, expires_ms)

        async def make(base: Base, _: str) -> Next:
            current = None if base.stored is None else await self._value(base.stored)
            if isinstance(current, Merging | Clocked):
                raise _of_two_types(target, current, value)
            self._merging.discard(target.subject)
            return Next(content)

        return await self._write(target, make, backoff)

    async def put_if(
        self, target: Target, value: Merging, expires_ms: int | None, expected: Version | None, backoff: Backoff
    ) -> Stored:
        """Put a value that merges over this very version; None: over none. ConflictError when it is another."""

        def check(stored: Stored | None) -> None:
            actual = None if stored is None else stored.version
            if actual != expected:
                raise version_conflict(target, expected, actual)

        return await self._join(target, value, expires_ms, backoff, check)

    async def merge(
        self,
        target: Target,
        value: object,
        strategy: str | None,
        known: Entry | None,
        expires_ms: int | None,
        backoff: Backoff,
    ) -> Stored:
        """See `AgentState.merge`."""
        name = strategy or strategy_of(value) or self.route(target.key)
        if name not in RESOLVERS:
            raise RejectedError(
                f"{name!r} is no strategy; there are {', '.join(RESOLVERS)}", key=target.key,
                hint="register it first: cenote.conflict.register",
            )  # fmt: skip
        if isinstance(value, Merging):
            if name != Strategy.CRDT_MERGE:
                raise RejectedError(f"a {type(value).__name__} merges by itself, not by {name!r}", key=target.key)
            return await self._join(target, value, expires_ms, backoff)
        return await self._decide(target, value, name, known, expires_ms, backoff)

    async def _join(
        self,
        target: Target,
        value: Merging,
        expires_ms: int | None,
        backoff: Backoff,
        check: Callable[[Stored | None], None] | None = None,
    ) -> Stored:
        made: Next | None = None

        async def make(base: Base, _: str) -> Next:
            nonlocal made
            if check is not None:
                check(base.stored)
            current = None if base.stored is None else await self._value(base.stored)
            if check is None and current is not None and not isinstance(current, Merging):
                raise _of_two_types(target, current, value)
            made = self._next(target, current, value, expires_ms)
            if isinstance(current, Merging):
                self._log.count(Strategy.CRDT_MERGE, "merged")
            return made

        stored = await self._write(target, make, backoff)
        assert made is not None
        assert made.settled is not None
        value.adopt(made.settled)
        return stored

    async def _decide(
        self, target: Target, value: object, name: str, known: Entry | None, expires_ms: int | None, backoff: Backoff
    ) -> Stored:
        content = content_of(value, expires_ms)  # what cannot be stored is refused before anything is read
        if isinstance(value, Clocked) and isinstance(value.clock, HybridClock):
            value.clock.check_drift(self._core.now_ms())  # else it would win until its time has come
        ancestor = None if known is None else _side(known.value, known.version, known.writer)
        logged = False

        async def make(base: Base, operation: str) -> Next | None:
            nonlocal logged
            stored = base.stored
            if stored is None or (ancestor is not None and ancestor.version == stored.version):
                return Next(content)
            there = await self._value(stored)
            if isinstance(there, Merging):
                raise _of_two_types(target, there, value)
            current = _side(there, stored.version, entry.writer(stored.op))
            # The version that it would have at the least: by the store's order the later of the two.
            next_version = Version(self._core.epochs.newest, base.held.sequence + 1)
            incoming = _side(value, next_version, self._core.writer_id)
            tell = partial(
                self._log.record, target, operation=operation, strategy=name, current=current, incoming=incoming
            )
            try:
                decided = resolve(current, incoming, name, ancestor=ancestor)
                chosen = _content_of_side(decided, expires_ms)
            except (RejectedError, ConflictError) as error:
                error.key = target.key
                outcome: Outcome = "unresolved" if isinstance(error, UnresolvedError) else "refused"
                if type(error) is ConflictError:  # the writer is told, and has lost nothing
                    self._log.count(name, outcome)
                else:
                    await tell(outcome=outcome, result=None, discarded=(), reason=str(error))
                raise
            gone = tuple("current" if side is current else "incoming" for side in decided.discarded)
            if gone or logged:
                await tell(outcome=decided.winner, result=decided.value, discarded=gone)
                logged = True
            else:
                self._log.count(name, decided.winner)
            return None if decided.winner == "current" else Next(chosen)

        return await self._write(target, make, backoff)

    # --- the loop ---------------------------------------------------------------------------------------------

    async def _write(self, target: Target, make: Make, backoff: Backoff) -> Stored:
        """Compare-and-set what `make` makes of the believed state, until nobody was faster; where it makes nothing, the
        state stands.

        Raises:
            ConflictError: others were faster until the deadline.
            OutcomeUnknownError: an answer was lost and the key has changed since; it happened at most once.
        """
        writer = self._writer
        placed: Placed | None = None
        operation = writer.next_operation()  # of all attempts: one at most takes effect
        pace = self._contention.pace(target.subject)
        async with self._turns.turn(target.subject, backoff):
            await pace.stand_aside(backoff)
            while True:
                pace.begin()
                step = writer.backoff(backoff.left_ms)
                base = await writer.base(target, step)
                made = await make(base, operation)
                if made is None:
                    return base.held
                content, placed = await writer.placed(target, made.content, placed)
                stored = await self._replace(target, base, made, content, operation, step)
                if stored is not None:
                    pace.won()
                    return stored
                pace.lost()
                self._core.counts.conflicts += 1
                words = f"others were faster at {target.key!r} until the deadline"
                await backoff.pause(ConflictError(words, key=target.key, hint="try again"), pace)

    async def _replace(
        self, target: Target, base: Base, made: Next, content: Content, operation: str, step: Backoff
    ) -> Stored | None:
        if made.settled is None:
            return await self._writer.replace(target, base, content, operation, step)
        try:
            stored = await self._writer.replace(target, base, content, operation, step)
        except BaseException:  # cancelled too: it may be stored under this name
            self._actors.lost(target.subject)
            raise
        if stored is not None:
            self._actors.wrote(target.subject, made.settled, made.actor)
        return stored

    def _next(self, target: Target, current: Any, value: object, expires_ms: int | None) -> Next:
        """The value as it is to be stored over `current`: one that merges under this process's name."""
        if isinstance(current, Merging) and type(current) is not type(value):
            raise _of_two_types(target, current, value)
        if not isinstance(value, Merging):
            return Next(content_of(value, expires_ms))
        if len(self._merging) >= _SEEN_MAX:
            self._merging.clear()
        self._merging.add(target.subject)
        mine = current if isinstance(current, Merging) else None
        actor = self._actors.actor(target.subject, mine)
        settled = value.settle(mine, actor)
        return Next(content_of(settled, expires_ms), settled, actor)

    async def _value(self, stored: Stored) -> Any:
        if stored.codec == entries.BLOB:
            stored = await self._core.blobs.resolve(stored)
        return values.decode(stored.codec, stored.body)


def content_of(value: object, expires_ms: int | None) -> Content:
    """What a write of this value puts under a key. RejectedError when it cannot be stored."""
    codec, body = values.encode(value)
    return Content(codec, body, expires_ms)


def _side(value: Any, version: Version, writer: str) -> Side:
    if isinstance(value, Clocked):
        return Side(value.value, version, value.clock, writer)
    return Side(value, version, None, writer)


def _content_of_side(decided: Resolution, expires_ms: int | None) -> Content:
    side = decided.side
    return content_of(side.value if side.clock is None else Clocked(side.value, side.clock), expires_ms)


def _of_two_types(target: Target, current: object, value: object) -> RejectedError:
    return RejectedError(
        f"{target.key!r} holds {type(current).__name__}, and this is {type(value).__name__}: two types under one key",
        key=target.key, hint="change it with update() or merge(), or overwrite it: put(..., replace=True)",
    )  # fmt: skip
