"""Reads: L1 → KV → SQL, one at a time per key (I2, I4, I5, I10).

KV, tombstones included, is authoritative for what it holds; only what it does not hold is asked of SQL.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple

from cenote import limits, points
from cenote.engine import entries
from cenote.engine.cache import Ticket
from cenote.engine.core import Core, reading
from cenote.engine.entries import Target
from cenote.engine.hydrator import Hydrator
from cenote.engine.waiting import until_mended
from cenote.errors import CodecError, UnavailableError
from cenote.kv.deadline import patient
from cenote.kv.message import Message
from cenote.model import key as keys
from cenote.model.entry import Stored, Tier, Version
from cenote.retry import Backoff

Found = tuple[Stored, Tier]
_LOOKS_MAX = 3
_NEVER = Version(0, 0)
_Outcome = tuple[Found | None, UnavailableError | None]
_CANCELLED: _Outcome = (None, UnavailableError("the read was cancelled"))


class _Flight:
    """A read under way, and the future of those who joined it."""

    __slots__ = ("shared", "ticket")

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.shared: asyncio.Future[_Outcome] | None = None


class _View(NamedTuple):
    """One look at many keys: what KV holds, at which position, what SQL holds of the rest, and what a fill of L1 and a
    hydration need to know."""

    position: int | None
    found: dict[str, Found]
    rows: dict[str, Stored]
    absent: dict[str, tuple[Target, int]]
    tickets: list[Ticket]
    generation: int
    t0_ms: int


class Reader:
    """Finds the newest believed state of a key."""

    def __init__(self, core: Core, hydrator: Hydrator) -> None:
        self._core = core
        self._hydrator = hydrator
        self._flights: dict[str, _Flight] = {}

    async def read(self, target: Target) -> Found | None:
        """The state of one key and the tier that answered; None when no tier holds it or it is gone.

        Raises:
            UnavailableError: neither L1 nor KV (or, for what KV does not hold, SQL) answered within the deadline, or
                at once while the server is out.
        """
        # The first reader of a key does the work inline; only when a second one comes is there a future to share. A
        # flight is joined only while nothing has happened to the key since it began: else it may bring an older state
        # than the one this caller has written or seen (I4, I5).
        ticket = self._core.cache.ticket(target.subject)
        flight = self._flights.get(target.subject)
        while flight is not None and flight.ticket == ticket:
            if flight.shared is None:
                flight.shared = asyncio.get_running_loop().create_future()
            outcome = await asyncio.shield(flight.shared)
            if outcome is not _CANCELLED:
                return _take(outcome)
            flight = self._flights.get(target.subject)
        own = self._flights[target.subject] = _Flight(ticket)
        outcome = _CANCELLED
        try:
            found = await self._load(target)
            outcome = (found, None)
            return found
        except UnavailableError as error:
            outcome = (None, error)
            raise
        finally:
            if self._flights.get(target.subject) is own:
                del self._flights[target.subject]
            if own.shared is not None and not own.shared.done():
                own.shared.set_result(outcome)

    async def _load(self, target: Target) -> Found | None:
        core = self._core
        backoff = Backoff(patient(core.config.retry), core.config.kv.deadline_ms)
        timeout_ms = core.config.kv.request_timeout_ms
        while True:
            try:
                with reading():
                    return await self._attempt(target, backoff, timeout_ms)
            except UnavailableError as error:
                if self._from_sql_alone:
                    return await self._flushed(target)
                await backoff.pause(error)
            timeout_ms = core.attempt_ms(backoff)

    async def _attempt(self, target: Target, backoff: Backoff, timeout_ms: int) -> Found | None:
        core = self._core
        if core.mended != core.link.generation:
            await until_mended(core, backoff.left_ms)
        if not core.coherence.listening:
            await core.coherence.listen()
        ticket = core.cache.ticket(target.subject)
        generation, t0_ms = core.link.generation, core.link.server_now_ms()
        message = await core.message(target, timeout_ms)
        if points.armed:
            await points.hit("read.answered")
        found, over = await self._judge(target, message, backoff)
        if found is not None:
            core.met(target.subject, found[0].version.revision)
            core.cache.fill(target.subject, found[0], ticket)
            if core.gone(found[0]):
                found = None
            elif found[1] is Tier.RELATIONAL_DB:
                await self._hydrator.offer(target.wire, found[0], t0_ms=t0_ms, over=over, generation=generation)
        core.counts.hit(found)
        return found

    @property
    def _from_sql_alone(self) -> bool:
        """Whether NATS is out, and reads are to be answered by what was flushed (`kv.reads_when_down`)."""
        return self._core.link.out and self._core.config.kv.reads_when_down == "sql"

    async def _flushed(self, target: Target) -> Found | None:
        """What SQL holds, newer writes notwithstanding: neither L1 nor KV learns of it."""
        row = await self._core.rows.read(target.agent.id, target.row_key)
        found = None if row is None else (entries.from_row(row), Tier.RELATIONAL_DB)
        return None if found is None or self._core.gone(found[0]) else found

    async def _judge(self, target: Target, message: Message | None, backoff: Backoff) -> tuple[Found | None, int]:
        """What a KV answer means; asks SQL where KV does not hold the key. Also: the sequence a copy would replace."""
        core = self._core
        if message is not None:
            stored = entries.from_message(message, core.epochs)
            if _answers(stored, message):
                return (stored, Tier.DISTRIBUTED_KV), message.sequence
        try:
            async with asyncio.timeout(backoff.left_ms / 1000):
                row = await core.rows.read(target.agent.id, target.row_key)
        except TimeoutError as error:
            raise UnavailableError("PostgreSQL did not answer in time", key=target.key, tier="RELATIONAL_DB") from error
        over = 0 if message is None else message.sequence
        if row is None or row.deleted:
            return None, over
        return (entries.from_row(row), Tier.RELATIONAL_DB), over

    async def read_many(self, targets: Sequence[Target]) -> dict[str, Found]:
        """The states of many keys of one agent, by key, without the absent ones; up to 1,024 of them as they were
        together at one moment (flow rule 24)."""
        core = self._core
        backoff = Backoff(patient(core.config.retry), core.config.kv.deadline_ms)
        wanted = {target.subject: target for target in targets}
        copies = self._copies(wanted)
        found: dict[str, Found] = {wanted[subject].key: (copy, Tier.MEMORY_CACHE) for subject, copy in copies.items()}
        rest = [target for subject, target in wanted.items() if subject not in copies]
        position = 0
        for start in range(0, len(rest), limits.MULTI_GET_SUBJECTS_MAX):
            more, position = await self._load_patiently(rest[start : start + limits.MULTI_GET_SUBJECTS_MAX], backoff)
            found |= more
        if len(wanted) <= limits.MULTI_GET_SUBJECTS_MAX and not self._together(copies, position, mixed=bool(rest)):
            found, _ = await self._load_patiently(list(wanted.values()), backoff)
        now_ms = core.now_ms()
        return {key: pair for key, pair in found.items() if not entries.gone(pair[0], now_ms)}

    def _copies(self, wanted: Mapping[str, Target]) -> dict[str, Stored]:
        """What L1 holds, unless the feed is in the midst of a batch of this agent: then L1 holds half of it."""
        core = self._core
        if not core.coherence.listening or not wanted:
            return {}
        within = core.coherence.within
        if within is not None and core.split(within)[0] == next(iter(wanted.values())).agent.token:
            return {}
        copies = ((subject, core.cache.lookup(subject)) for subject in wanted)
        return {subject: copy for subject, copy in copies if copy is not None}

    def _together(self, copies: Mapping[str, Stored], position: int, *, mixed: bool) -> bool:
        """Whether these copies belong together with what KV and SQL held at `position`: the feed has shown everything
        up to there and to the newest copy, and nothing has happened to a copy meanwhile."""
        core = self._core
        for subject, copy in copies.items():
            epoch, revision = copy.version
            if epoch > core.epochs.newest or (mixed and not core.cache.holds(subject, copy)):
                return False
            if epoch == core.epochs.newest and revision > position:
                position = revision
        return not copies or core.coherence.covers(position)

    async def _load_patiently(self, targets: list[Target], backoff: Backoff) -> tuple[dict[str, Found], int]:
        while True:
            try:
                with reading():
                    async with asyncio.timeout(backoff.left_ms / 1000):
                        return await self._load_many(targets)
            except TimeoutError as error:
                raise UnavailableError("the keys could not be read in time") from error
            except UnavailableError as error:
                if self._from_sql_alone:
                    found = await asyncio.gather(*(self._flushed(target) for target in targets))
                    return {one.key: pair for one, pair in zip(targets, found, strict=True) if pair is not None}, 0
                await backoff.pause(error)

    async def _load_many(self, targets: list[Target]) -> tuple[dict[str, Found], int]:
        """The states of up to 1,024 keys in KV and SQL, and the position in the stream at which they were together.

        KV's answer is one snapshot. What it lacks SQL is asked for later; so if SQL shows anything above the snapshot,
        or of an epoch that we do not know yet, both are asked again. Where there is no one snapshot, for nothing was
        found or it is too large for one answer, a position that the stream had reached before takes its place.
        """
        core = self._core
        if core.mended != core.link.generation:
            await until_mended(core, core.config.kv.deadline_ms)  # the caller's own deadline is around it
        if not core.coherence.listening:
            await core.coherence.listen()
        floor = core.coherence.seen
        for look in range(_LOOKS_MAX):
            view = await self._look(targets)
            position = floor if view.position is None else view.position
            # Many large values that are written all the time would else never be read at all: they alone, without a
            # snapshot of KV, are not promised to be together.
            if self._at_once(view, position, strictly=look + 1 < _LOOKS_MAX):
                return await self._believe(targets, view), position
            if any(stored.version.epoch > core.epochs.newest for stored in view.rows.values()):
                await core.probe_once()
            floor = (await core.stream.info()).last_seq
        raise UnavailableError("PostgreSQL showed newer entries than NATS again and again")

    def _at_once(self, view: _View, position: int, *, strictly: bool) -> bool:
        """Whether nothing here is newer than what the stream held at this position."""
        known = [stored.version for stored in view.rows.values()]
        if view.position is None and strictly:
            known += [stored.version for stored, _ in view.found.values()]
        return max(known, default=_NEVER) <= Version(self._core.epochs.newest, position)

    async def _look(self, targets: list[Target]) -> _View:
        core = self._core
        tickets = [core.cache.ticket(target.subject) for target in targets]
        generation, t0_ms = core.link.generation, core.link.server_now_ms()
        messages, position = await core.messages(targets)
        if points.armed:
            await points.hit("read.answered")
        found: dict[str, Found] = {}
        absent: dict[str, tuple[Target, int]] = {}
        for target in targets:
            message = messages.get(target.subject)
            stored = None if message is None else entries.from_message(message, core.epochs)
            if message is not None and stored is not None and _answers(stored, message):
                found[target.key] = (stored, Tier.DISTRIBUTED_KV)
            else:
                absent[target.row_key] = (target, 0 if message is None else message.sequence)
        rows = await core.rows.read_many(targets[0].agent.id, list(absent)) if absent else []
        return _View(
            position, found, {row.key: entries.from_row(row) for row in rows}, absent, tickets, generation, t0_ms
        )

    async def _believe(self, targets: list[Target], view: _View) -> dict[str, Found]:
        """Show what was looked at: offer to KV what only SQL holds, and fill L1."""
        core, found = self._core, dict(view.found)
        offers = []
        for row_key, stored in view.rows.items():
            if stored.deleted:
                continue
            target, over = view.absent[row_key]
            found[target.key] = (stored, Tier.RELATIONAL_DB)
            offers.append(
                self._hydrator.offer(target.wire, stored, t0_ms=view.t0_ms, over=over, generation=view.generation)
            )
        if offers:
            await asyncio.gather(*offers)
        for target, ticket in zip(targets, view.tickets, strict=True):
            pair = found.get(target.key)
            core.counts.hit(pair)
            if pair is not None:
                core.met(target.subject, pair[0].version.revision)
                core.cache.fill(target.subject, pair[0], ticket)
        return found

    async def scan(self, agent: keys.AgentRef, prefix: str) -> AsyncIterator[tuple[str, Stored, Tier]]:
        """Every live key of an agent that begins with `prefix`, once each: KV first, then what only SQL holds.

        The order of the two tiers matters (flow rule 25): a key that is flushed and evicted in between is then found
        in SQL. Memory: the set of key names.
        """
        core = self._core
        if core.mended != core.link.generation:
            await until_mended(core, core.config.kv.deadline_ms)
        seen: set[str] = set()
        async for message in core.live(core.agent_filter(agent)):
            stored = entries.listed(message, core.epochs)
            try:
                key = keys.decode_token(core.split(message.subject)[1])
            except CodecError:
                continue  # not a key that anybody can name
            if not key.startswith(prefix) or key in seen or not _answers(stored, message):
                continue
            seen.add(key)
            if not core.gone(stored):
                yield key, stored, Tier.DISTRIBUTED_KV
        await core.rows.copied(agent.id)
        after: str | None = None
        row_prefix = keys.sql_key(prefix)
        while rows := await core.table.page(agent.id, after, row_prefix, limits.LIST_PAGE_KEYS, live_only=True):
            after = rows[-1].key
            for row in rows:
                key = keys.from_sql_key(row.key)
                stored = entries.from_row(row)
                if key not in seen and not core.gone(stored):
                    yield key, stored, Tier.RELATIONAL_DB


def _answers(stored: Stored, message: Message) -> bool:
    return entries.believed(stored, message) and not entries.nobody(stored)


def _take(outcome: _Outcome) -> Found | None:
    found, error = outcome
    if error is not None:
        raise error
    return found
