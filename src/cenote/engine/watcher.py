"""Watches: entries, deletes and expiries, at least once, per key in order, never a silent gap (flow rules 10, 21, 25).

Live events come from the republish feed. Whatever may have been missed — a reconnect, a gap that the probe found, a
slow consumer's full queue — is caught up from KV and SQL: intermediate versions may be skipped then, the newest state
of each key never. Clean copies are no events.
"""

import asyncio
import fnmatch
import heapq
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import msgspec

from cenote import limits
from cenote.engine import entries
from cenote.engine.core import Core
from cenote.engine.waiting import until_mended
from cenote.errors import CenoteError, CodecError, ExpiredError, UnavailableError
from cenote.kv.message import Message
from cenote.model import key as keys
from cenote.model.entry import Change, Entry, Stored, Tier, Version

log = logging.getLogger("cenote.engine")

Selector = Callable[[keys.AgentRef], bool]


def selector(agents: str) -> Selector:
    """Which agents a watch of the whole store means: a shell-style pattern over their names. A reserved one is asked
    for by its own."""
    return lambda agent: (
        fnmatch.fnmatchcase(agent.text, agents) and (agent.text == agents or agent not in keys.RESERVED_AGENTS)
    )


class _Expiring(NamedTuple):
    """A key with a time to live: when its alarm rings, and its newest entry without the value."""

    alarm_ms: int
    stored: Stored


class Watch:
    """One watch; iterate `events()` once."""

    def __init__(
        self, core: Core, *, agent: keys.AgentRef | None, select: Selector, prefix: str, since: Version | int | None,
        into: type | None = None,
    ) -> None:  # fmt: skip
        self._core = core
        self._agent = agent
        self._select = select
        self._prefix = prefix
        self._since = since
        self._into = into
        self._queue: deque[Message] = deque()
        self._wake = asyncio.Event()
        self._gap = False
        self._position = Version(0, 0)
        self._listed: dict[str, int] = {}
        self._refs: dict[str, keys.AgentRef | None] = {}
        self._start = 0
        self._closed = False
        self._expiries: list[tuple[int, str, str]] = []
        self._expiring: dict[tuple[str, str], _Expiring] = {}

    async def events(self) -> AsyncIterator[Entry]:
        """Entries until the iterator or the store is closed. ExpiredError when `since` is no position of this store."""
        core = self._core
        await core.coherence.listen()
        core.coherence.listeners.append(self._on_event)
        core.coherence.on_gap.append(self._on_gap)
        core.on_close.append(self._on_close)
        try:
            await core.probe_once()
            newest = Version(core.epochs.newest, core.last_sequence)
            if isinstance(self._since, Version) and self._since > newest:
                raise ExpiredError(f"version {self._since} is not of this store's past", hint="watch with since=0")
            self._position = newest
            if self._since is not None:
                after = self._since if isinstance(self._since, Version) else Version(0, 0)
                async for entry in self._catch_up(after, live_only=self._since == 0):
                    yield entry
            while not self._closed:
                async for entry in self._turn():
                    yield entry
        finally:
            core.coherence.listeners.remove(self._on_event)
            core.coherence.on_gap.remove(self._on_gap)
            core.on_close.remove(self._on_close)

    async def _turn(self) -> AsyncIterator[Entry]:
        await self._sleep()
        if self._gap and self._core.link.connected:
            self._gap = False
            self._queue.clear()
            try:
                async for entry in self._catch_up(self._position, live_only=False):
                    yield entry
            except CenoteError as error:
                log.debug("a watch will catch up later: %s", error)
                self._gap = True
                await asyncio.sleep(limits.PROBE_INTERVAL_MS / 1000)
        while self._queue and not self._gap:
            try:
                live = await self._live(self._queue.popleft())
            except UnavailableError:  # a large value, while PostgreSQL is away
                self._on_gap()
                break
            if live is not None:
                yield live
        for entry in self._expired():
            yield entry

    async def _sleep(self) -> None:
        self._wake.clear()
        if self._queue or self._gap or self._closed:
            return
        timeout = None
        if self._expiries:
            timeout = max(0.0, (self._expiries[0][0] - self._core.now_ms()) / 1000)
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            return

    # --- live events ----------------------------------------------------------------------------------------

    def _on_event(self, event: Message) -> None:
        token, _ = self._core.split(event.subject)
        if self._ref(token) is None:
            return
        if len(self._queue) >= limits.WATCH_QUEUE_MAX:
            self._on_gap()
            return
        self._queue.append(event)
        self._wake.set()

    def _on_gap(self) -> None:
        self._gap = True
        self._wake.set()

    def _on_close(self) -> None:
        self._closed = True
        self._wake.set()

    def _ref(self, token: str) -> keys.AgentRef | None:
        if token not in self._refs:
            try:
                agent = keys.decode_agent(token)
            except CodecError:
                self._refs[token] = None
                return None
            wanted = agent == self._agent if self._agent is not None else self._select(agent)
            self._refs[token] = agent if wanted else None
        return self._refs[token]

    async def _live(self, event: Message) -> Entry | None:
        if event.sequence <= max(self._start, self._listed.get(event.subject, 0)):
            return None  # the listing told it, or something newer
        read = self._read(event)
        entry = None if read is None or read[2].clean else await self._of_stored(*read, Tier.DISTRIBUTED_KV)
        self._position = max(self._position, Version(self._core.epochs.newest, event.sequence))
        return entry

    # --- catching up ----------------------------------------------------------------------------------------

    async def _catch_up(self, after: Version, *, live_only: bool) -> AsyncIterator[Entry]:
        """The newest state of each key that changed after a version: KV first, then what only SQL holds."""
        core = self._core
        await core.probe_once()
        if core.mended != core.link.generation:
            await until_mended(core, core.config.kv.deadline_ms)
        start = Version(core.epochs.newest, core.last_sequence)
        self._start = start.revision
        core.coherence.tell(start.revision)
        first = after.revision + 1 if after.epoch == core.epochs.newest else 1
        base = core.stream.prefix
        seen: set[str] = set()
        listed: dict[str, int] = {}
        async for message in core.live(f"{base}{self._agent.token}.>" if self._agent else f"{base}>", first):
            if message.sequence > start.revision:
                listed[message.subject] = message.sequence
                core.coherence.tell(message.sequence)
            entry = await self._listed_entry(message, after, seen)
            if entry is not None and not (live_only and entry.change != "put"):
                yield entry
        async for entry in self._from_sql(after, seen, live_only):
            yield entry
        self._listed = listed
        self._position = max(self._position, start)

    async def _from_sql(self, after: Version, seen: set[str], live_only: bool) -> AsyncIterator[Entry]:
        core = self._core
        base = core.stream.prefix
        agent_id = None if self._agent is None else self._agent.id
        await core.rows.copied(agent_id)
        async for name, row in core.table.newer_than(after.epoch, after.revision, agent_id, limits.LIST_PAGE_KEYS):
            # Every id that is a hash has a registered name; one that is not registered yet is still in KV.
            ref = self._agent or keys.agent_named(row.agent_id, name)
            key = keys.from_sql_key(row.key)
            if self._ref(ref.token) is None or keys.subject(base, ref, key) in seen:
                continue
            stored = entries.from_row(row)
            if stored.version.epoch == core.epochs.newest:
                core.coherence.tell(stored.version.revision)
            if live_only and core.gone(stored):
                continue
            entry = await self._of_stored(ref, key, stored, Tier.RELATIONAL_DB)
            if entry is not None:
                yield entry

    async def _listed_entry(self, message: Message, after: Version, seen: set[str]) -> Entry | None:
        """A live entry in a listing. A clean copy is the state of its key, too, unless it is not believed."""
        read = self._read(message)
        if read is None or not entries.believed(read[2], message) or entries.nobody(read[2]):
            return None
        seen.add(message.subject)
        agent, key, stored = read
        return await self._of_stored(agent, key, stored, Tier.DISTRIBUTED_KV) if stored.version > after else None

    # --- entries --------------------------------------------------------------------------------------------

    def _read(self, message: Message) -> tuple[keys.AgentRef, str, Stored] | None:
        token, key_token = self._core.split(message.subject)
        agent = self._ref(token)
        if agent is None:
            return None
        try:
            return agent, keys.decode_token(key_token), entries.from_message(message, self._core.epochs)
        except CodecError as error:
            log.warning("a watch passes over an unreadable entry: %s", error)
            return None

    async def _of_stored(self, agent: keys.AgentRef, key: str, stored: Stored, tier: Tier) -> Entry | None:
        if not key.startswith(self._prefix):
            return None
        place = (agent.text, key)
        change: Change = "delete" if stored.deleted else "put"
        if stored.expires_ms is not None:  # a delete has none; a row that expired and was swept keeps it
            if self._core.gone(stored):
                change = "expiry"
            else:
                self._expect(place, stored)
        if change != "put" or stored.expires_ms is None:
            self._expiring.pop(place, None)
        try:
            if stored.codec == entries.BLOB:
                stored = await self._core.blobs.resolve(stored)
            return Entry.of(stored, agent=agent.text, key=key, tier=tier, change=change, into=self._into)
        except CodecError as error:
            log.warning("a watch passes over an unreadable entry: %s", error)
            return None

    def _expect(self, place: tuple[str, str], stored: Stored) -> None:
        """Note when a key expires; one alarm per key, set anew only when it must ring earlier."""
        assert stored.expires_ms is not None
        known = self._expiring.get(place)
        alarm_ms = stored.expires_ms
        if known is not None and known.alarm_ms <= alarm_ms:
            alarm_ms = known.alarm_ms
        else:
            heapq.heappush(self._expiries, (alarm_ms, *place))
        self._expiring[place] = _Expiring(alarm_ms, msgspec.structs.replace(stored, body=b""))

    def _expired(self) -> list[Entry]:
        """Entries whose time is over and that nobody has written since."""
        now_ms = self._core.now_ms()
        over: list[Entry] = []
        while self._expiries and self._expiries[0][0] <= now_ms:
            alarm_ms, agent, key = heapq.heappop(self._expiries)
            known = self._expiring.get((agent, key))
            if known is None or known.alarm_ms != alarm_ms:
                continue
            del self._expiring[(agent, key)]
            if entries.gone(known.stored, now_ms):
                over.append(Entry.of(known.stored, agent=agent, key=key, tier=Tier.DISTRIBUTED_KV, change="expiry"))
            else:
                self._expect((agent, key), known.stored)  # written again with a later expiry
        return over
