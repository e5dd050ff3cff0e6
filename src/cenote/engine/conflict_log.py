"""The conflict log: what happened when two writes met, and what was discarded (I6).

A record is an ordinary entry of one reserved agent, so it needs no road of its own: it is acknowledged by KV, flushed,
hydrated, and outlives whoever wrote it like any other entry. Its key begins with the time, so that keys sort by it. It
expires after `conflicts.ttl_s`; beyond `conflicts.count_max` the oldest are deleted by whoever flushes.
"""

import asyncio
import heapq
import logging
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from cenote import limits
from cenote.conflict import Side
from cenote.engine import entries
from cenote.engine.core import Core
from cenote.engine.entries import Target
from cenote.engine.waiting import until_mended
from cenote.engine.writer import TOMBSTONE, Content, Writer
from cenote.errors import (
    CenoteError,
    CodecError,
    ConsistencyError,
    OutcomeUnknownError,
    RejectedError,
    UnavailableError,
)
from cenote.model import key as keys
from cenote.model import value as values
from cenote.model.clocked import Clocked
from cenote.model.duration import seconds
from cenote.model.entry import Stored, from_ms, to_us

log = logging.getLogger("cenote.engine")

Outcome = Literal["current", "incoming", "merged", "refused", "unresolved"]

_DIGITS: Final = 15  # of the time in ms that a key begins with
_OPERATIONS_MAX: Final = 10_000  # of which it is remembered when they were recorded first
_TRIM_MAX: Final = 50_000  # deletes of one round: the bound holds for 150 records a second, round after round
_TRIM_PAGE: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Two writes that met under one key.

    Attributes:
        at: the KV server's time, UTC.
        agent, key: where.
        strategy: by its name in `cenote.conflict.RESOLVERS`.
        outcome: whose value stands, or why none was written.
        writer, operation: whose write met what was there.
        current, incoming: both values; result: what stands, None where nothing was written.
        discarded: of "current" and "incoming", those that do not live on in the result.
        versions: of what was there, and the one that the incoming write was to have.
        reason: why it was refused, and which values were too large to be kept twice.
    """

    at: datetime
    agent: str
    key: str
    strategy: str
    outcome: Outcome
    writer: str
    operation: str
    current: Any
    incoming: Any
    result: Any
    discarded: tuple[str, ...]
    versions: tuple[str | None, str | None]
    reason: str | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which conflicts somebody asks for; None: any."""

    agent: str | None
    key: str | None
    strategy: str | None
    since_ms: int
    limit: int

    def fits(self, found: Conflict) -> bool:
        """Whether this is one of them."""
        pairs = ((self.agent, found.agent), (self.key, found.key), (self.strategy, found.strategy))
        return all(asked is None or asked == there for asked, there in pairs)


def wanted(
    now_ms: int, agent: str | UUID | None, key: str | None, strategy: str | None,
    since: datetime | timedelta | float | None, limit: int,
) -> Wanted:  # fmt: skip
    """See `Store.conflicts`."""
    if type(limit) is not int or limit < 1:
        raise RejectedError(f"limit: a positive integer is needed, not {limit!r}")
    name = None if agent is None else keys.agent_ref(agent).text
    if isinstance(since, datetime):
        if since.tzinfo is None:
            raise RejectedError("since: a datetime with a time zone is needed")
        since_ms = to_us(since) // 1000
    else:
        ago_s = seconds(since, "since")
        since_ms = 0 if ago_s is None else now_ms - int(ago_s * 1000)
    return Wanted(name, key, None if strategy is None else str(strategy), max(0, since_ms), limit)


class ConflictLog:
    """Writes the records of one process, counts meetings, and reads what everybody has recorded."""

    def __init__(self, core: Core, writer: Writer) -> None:
        self._core = core
        self._writer = writer
        self._recorded: dict[str, tuple[int, tuple[str, str]]] = {}
        self._newest_ms = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        core.trim = self.trim

    # --- writing --------------------------------------------------------------------------------------------

    def count(self, strategy: str, outcome: Outcome) -> None:
        """A meeting of which there is nothing to record: nobody lost anything."""
        self.counts[str(strategy), outcome] += 1

    def counted(self) -> dict[str, dict[str, int]]:
        """How many meetings of this process had which outcome, by strategy."""
        found: dict[str, dict[str, int]] = {}
        for (strategy, outcome), number in sorted(self.counts.items()):
            if number:
                found.setdefault(strategy, {})[outcome] = number
        return found

    async def record(
        self,
        target: Target,
        *,
        operation: str,
        strategy: str,
        outcome: Outcome,
        current: Side,
        incoming: Side,
        result: Any,
        discarded: tuple[str, ...],
        reason: str | None = None,
    ) -> None:
        """Acknowledged by KV before it returns; called again with the same operation it replaces the record.

        Raises:
            RejectedError: what is to be discarded cannot be kept here, so it must not be discarded.
            UnavailableError, BackpressureError: nothing may be discarded now.
        """
        now_ms = self._core.now_ms()
        at_ms, counted = self._recorded.get(operation) or (self._next_ms(now_ms), None)
        record = {
            "agent": target.agent.text, "key": target.key, "strategy": str(strategy), "outcome": outcome,
            "writer": incoming.writer, "current": _whole(current), "incoming": _whole(incoming),
            "result": result if outcome == "merged" else None,  # else it is one of the sides, or nothing
            "discarded": list(discarded),
            "versions": [None if side.version is None else str(side.version) for side in (current, incoming)],
            "reason": reason,
        }  # fmt: skip
        try:
            codec, body = _encoded(record)
            place = self._core.target(keys.CONFLICTS, f"{at_ms:0{_DIGITS}d}.{operation}")
            expires_ms = now_ms + int(self._core.config.conflicts.ttl_s * 1000)
            await self._writer.write(place, Content(codec, body, expires_ms))
        except OutcomeUnknownError as error:  # of the record; of the key itself nothing was sent
            words = f"the answer to the record of a conflict was lost, so {target.key!r} was not written"
            raise UnavailableError(words, key=target.key, tier=error.tier, hint="try again") from error
        except CenoteError as error:
            error.key = target.key
            raise
        self._remember(operation, at_ms, counted, (str(strategy), outcome))

    def _next_ms(self, now_ms: int) -> int:
        """The time of a new record: no two of this process in one millisecond, for what follows it in the key does not
        sort."""
        self._newest_ms = max(now_ms, self._newest_ms + 1)
        return self._newest_ms

    def _remember(self, operation: str, at_ms: int, before: tuple[str, str] | None, now: tuple[str, str]) -> None:
        """An operation that is decided anew has one record, and counts once."""
        if before is not None:
            self.counts[before] -= 1
        self.counts[now] += 1
        if len(self._recorded) >= _OPERATIONS_MAX and operation not in self._recorded:
            del self._recorded[next(iter(self._recorded))]
        self._recorded[operation] = at_ms, now

    async def trim(self) -> None:
        """Delete the oldest records beyond `conflicts.count_max`, as SQL has them: writes like any other."""
        core, after = self._core, ""
        now_us = core.now_ms() * 1000
        count = await core.table.count_conflicts(keys.CONFLICTS.id, now_us)
        left = min(count - core.config.conflicts.count_max, _TRIM_MAX)
        while left > 0:
            page = await core.table.oldest_conflicts(keys.CONFLICTS.id, after, min(left, _TRIM_PAGE), now_us)
            if not page:
                return
            targets = [core.target(keys.CONFLICTS, keys.from_sql_key(row_key)) for row_key in page]
            await asyncio.gather(*(self._writer.write(target, TOMBSTONE) for target in targets))
            left, after = left - len(page), page[-1]

    # --- reading --------------------------------------------------------------------------------------------

    async def find(self, asked: Wanted) -> list[Conflict]:
        """The newest that are wanted, the newest first; KV and SQL united, KV first (flow rule 25).

        Raises:
            UnavailableError: one of them cannot be read now: the list would be short.
        """
        core, now_us = self._core, self._core.now_ms() * 1000
        if core.mended != core.link.generation:
            await until_mended(core, core.config.kv.deadline_ms)
        newest = _Newest(asked)
        seen: set[str] = set()
        async for message in core.live(core.agent_filter(keys.CONFLICTS)):
            stored = entries.listed(message, core.epochs)
            try:
                key = keys.decode_token(core.split(message.subject)[1])
            except CodecError:
                continue  # not a key that anybody can name
            if entries.believed(stored, message):
                seen.add(key)
                await self._consider(newest, key, stored)
        before: str | None = None
        while rows := await core.table.conflicts_before(keys.CONFLICTS.id, before, limits.LIST_PAGE_KEYS, now_us):
            before = rows[-1].key
            for row in rows:
                key = keys.from_sql_key(row.key)
                if not newest.has_room(key):
                    return newest.list()  # keys sort by time, and all others are older
                if key not in seen:
                    await self._consider(newest, key, entries.from_row(row))
        return newest.list()

    async def _consider(self, newest: "_Newest", key: str, stored: Stored) -> None:
        if self._core.gone(stored) or not newest.has_room(key):
            return
        try:
            if stored.codec == entries.BLOB:
                stored = await self._core.blobs.resolve(stored)
            newest.offer(key, _decoded(key, values.decode(stored.codec, stored.body)))
        except (CodecError, ConsistencyError) as error:
            log.warning("the conflict log passes over an unreadable record: %s", error)


class _Newest:
    """The newest of what is wanted, so far."""

    def __init__(self, asked: Wanted) -> None:
        self._wanted = asked
        self._since = f"{asked.since_ms:0{_DIGITS}d}"
        self._heap: list[tuple[str, Conflict]] = []

    def has_room(self, key: str) -> bool:
        """Whether a record of this key may be one of them."""
        return key >= self._since and (len(self._heap) < self._wanted.limit or key > self._heap[0][0])

    def offer(self, key: str, found: Conflict) -> None:
        """One for which there is room, if it is wanted."""
        if self._wanted.fits(found):
            add = heapq.heappush if len(self._heap) < self._wanted.limit else heapq.heapreplace
            add(self._heap, (key, found))

    def list(self) -> list[Conflict]:
        """The newest first."""
        return [found for _, found in sorted(self._heap, key=lambda pair: pair[0], reverse=True)]


def _whole(side: Side) -> Any:
    return side.value if side.clock is None else Clocked(side.value, side.clock)


def _encoded(record: dict[str, Any]) -> tuple[str, bytes]:
    """The record, without as few as possible of the values that are not discarded where they do not fit together: those
    stand under the key itself, or are still the writer's."""
    spare = [name for name in ("result", "current", "incoming") if name not in record["discarded"]]
    for without in range(len(spare) + 1):
        left_out = spare[:without]
        told = [record["reason"], "too large to be kept here: " + ", ".join(left_out)] if left_out else []
        try:
            changed = dict.fromkeys(left_out) | ({"reason": "; ".join(filter(None, told))} if told else {})
            return values.encode(record | changed)
        except RejectedError as error:
            refused = error
    raise RejectedError(
        f"what would be discarded does not fit into the conflict log, so nothing was written: {refused}",
        key=record["key"], hint="overwrite it with put(..., replace=True), or keep the value in parts",
    ) from refused  # fmt: skip


def _decoded(key: str, record: Any) -> Conflict:
    at, _, operation = key.partition(".")
    try:
        sides = {"current": record["current"], "incoming": record["incoming"]}
        one, other = record["versions"]
        return Conflict(
            at=from_ms(int(at)), agent=record["agent"], key=record["key"], strategy=record["strategy"],
            outcome=record["outcome"], writer=record["writer"], operation=operation, **sides,
            result=sides.get(record["outcome"], record["result"]), discarded=tuple(record["discarded"]),
            versions=(one, other), reason=record["reason"],
        )  # fmt: skip
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise CodecError(f"{key!r} is no record of a conflict") from error
