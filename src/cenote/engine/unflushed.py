"""Which writes SQL does not have yet: those above the floor of the flusher's durable, without those of which SQL holds
their version or a newer one (flow rule 1).

A look reads at most `limits.DIRTY_SCAN_ENTRIES` entries, page by page, and says when there was more; what it holds of
them is bounded by what it is asked for. While PostgreSQL is away nothing can be compared: then whatever is above the
floor counts, and the answer says so.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, NamedTuple, TypeVar
from uuid import UUID

from cenote import limits
from cenote.engine import entries
from cenote.engine.batch import agent_of
from cenote.engine.core import Core
from cenote.errors import CenoteError, CodecError, RejectedError
from cenote.kv.message import Message
from cenote.model import key as keys
from cenote.model.entry import Version

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dirty:
    """One key whose newest write is in KV and not in SQL.

    Attributes:
        agent, key: whose, and which.
        version: of the write.
        written_at: when KV took it, by its server's clock.
        age_ms: how long ago that was. Writes of the key that this one replaced may have waited longer.
        deleted: it is a delete.
        bytes: of the value, as KV holds it.
    """

    agent: str
    key: str
    version: Version
    written_at: datetime
    age_ms: int
    deleted: bool
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLag:
    """One agent of which SQL lacks something: how many keys, and how old the oldest of these writes is."""

    agent: str
    dirty: int
    oldest_ms: int


class Looked(list[T], Generic[T]):
    """What a bounded look has found, the oldest first.

    Attributes:
        cut: there may be more than this: it was told to stop at so many, or had read enough.
        compared: False: PostgreSQL did not answer, so some of this may be in SQL already.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cut = False
        self.compared = True


class _Candidate(NamedTuple):
    """What is told of an entry, without its body: a page of them is held."""

    agent: keys.AgentRef
    key: str
    version: Version
    time_us: int
    deleted: bool
    clean: bool
    size: int


async def dirty(core: Core, agent: keys.AgentRef | None, limit: int) -> Looked[Dirty]:
    """The keys that SQL does not have as KV has them, of one agent or of all; see the module."""
    _demand(limit)
    found: Looked[Dirty] = Looked()
    now_ms = core.now_ms()
    async with aclosing(_candidates(core, agent, found)) as candidates:
        async for one in candidates:
            if len(found) == limit:
                found.cut = True
                break
            found.append(Dirty(
                agent=one.agent.text, key=one.key, version=one.version,
                written_at=_EPOCH + timedelta(microseconds=one.time_us), age_ms=max(0, now_ms - one.time_us // 1000),
                deleted=one.deleted, bytes=one.size,
            ))  # fmt: skip
    return found


async def lagging(core: Core, limit: int) -> Looked[AgentLag]:
    """The agents with the oldest unflushed writes. Entries come in the order in which they were written, so the first
    agents that are met are the ones, and only they need be remembered."""
    _demand(limit)
    found: Looked[AgentLag] = Looked()
    counts: dict[str, list[int]] = {}
    now_ms = core.now_ms()
    async with aclosing(_candidates(core, None, found)) as candidates:
        async for one in candidates:
            known = counts.get(one.agent.text)
            if known is not None:
                known[0] += 1
            elif len(counts) < limit:
                counts[one.agent.text] = [1, max(0, now_ms - one.time_us // 1000)]
            else:
                found.cut = True
    found += [AgentLag(agent=agent, dirty=count, oldest_ms=oldest) for agent, (count, oldest) in counts.items()]
    return found


def _demand(limit: int) -> None:
    if not 1 <= limit <= limits.DIRTY_COUNT_MAX:
        raise RejectedError(f"limit: 1 to {limits.DIRTY_COUNT_MAX}, not {limit}")


async def _candidates(
    core: Core, agent: keys.AgentRef | None, found: Looked[Dirty] | Looked[AgentLag]
) -> AsyncGenerator[_Candidate, None]:
    await core.probe_once()  # which durable it is, and to which epoch a time belongs
    name = core.durable_name
    consumer = None if name is None else await core.consumer(name)
    page: list[_Candidate] = []
    read = 0
    subjects = core.stream.prefix + ">" if agent is None else core.agent_filter(agent)
    async for message in core.live(subjects, 1 if consumer is None else consumer.floor + 1):
        if read == limits.DIRTY_SCAN_ENTRIES:
            found.cut = True
            break
        read += 1
        candidate = _candidate(core, message)
        if candidate is not None:
            page.append(candidate)
        if len(page) == limits.DIRTY_PAGE_ENTRIES:
            for one in await _missing(core, page, found):
                yield one
            page = []
    for one in await _missing(core, page, found):
        yield one


def _candidate(core: Core, message: Message) -> _Candidate | None:
    token, key_token = core.split(message.subject)
    agent = agent_of(token)
    try:
        key = None if agent is None else keys.decode_token(key_token)
    except CodecError:
        return None
    if agent is None or key is None:
        return None  # our own entries, or foreign subjects: SQL has no row of them
    stored = entries.listed(message, core.epochs)
    size = len(message.payload)
    return _Candidate(agent, key, stored.version, message.time_us, stored.deleted, stored.clean, size)


async def _missing(core: Core, page: list[_Candidate], found: Looked[Dirty] | Looked[AgentLag]) -> list[_Candidate]:
    """Those whose version SQL does not have."""
    places: dict[tuple[UUID, str], _Candidate] = {(one.agent.id, keys.sql_key(one.key)): one for one in page}
    if not places:
        return []
    held = {}
    if found.compared:
        try:
            async with asyncio.timeout(limits.SILENCE_MS_MAX / 1000):
                held = await core.table.versions(places)
        except (CenoteError, TimeoutError):
            found.compared = False
    if not found.compared:  # a clean copy was made of what SQL has
        return [one for one in places.values() if not one.clean]
    return [
        one for place, one in places.items()
        if place not in held or Version(held[place].epoch, held[place].version) < one.version
    ]  # fmt: skip
