"""Agents: who they are, and who of them holds what (specification 4.1).

What an agent says of itself is an entry of the state like any other, of one reserved agent and under the agent's name.
So it has a version, is flushed, fenced and evicted like all others, and there is no second write that could be lost or
overtake another (S11): the columns of `agents.registry` are a copy that flushers make of what SQL has committed.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final
from uuid import RFC_4122, UUID

from cenote import limits
from cenote.engine.core import Core
from cenote.engine.entries import Target
from cenote.engine.machines import Machines
from cenote.engine.writer import TOMBSTONE, Content
from cenote.errors import CodecError, ConflictError, NotFoundError, RejectedError
from cenote.model import filters
from cenote.model import key as keys
from cenote.model import value as values
from cenote.model.entry import Stored, Version, from_us
from cenote.model.page import Cursors, Page, page_limit
from cenote.repositories.agents_content import ContentSearch, SearchIndexState, StateHit
from cenote.retry import Backoff
from cenote.sql.agents import Registered

_ALIVE: Final = Content(*values.encode(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """What an agent says of itself.

    Attributes:
        name: as `store.agent` takes it; it is not changed.
        type, status: words of your own, 1 to 100 characters.
        metadata: what else there is to say, at most 64 KiB encoded; searchable.
        updated_at: when it was last saved; for one that only wrote state, when it was registered.
        seen_at: its last sign of life: a save, an update or a heartbeat.
        version: of what was read; None for one that nobody has saved. `update` compares it.
    """

    name: str
    type: str = "agent"
    status: str = "unknown"
    metadata: dict[str, Any] = field(default_factory=dict)
    updated_at: datetime | None = field(default=None, compare=False)
    seen_at: datetime | None = field(default=None, compare=False)
    version: Version | None = None

    @property
    def id(self) -> UUID:
        """Its UUID in PostgreSQL (`agents.registry.agent_id`)."""
        return keys.agent_ref(self.name).id


class Agents:
    """The registry of agents. `find` sees each save at once, KV first; `list` and `search` read SQL, and are as late as
    it: some milliseconds, or `(await store.stats()).oldest_dirty_ms` while nobody flushes."""

    def __init__(self, machines: Machines) -> None:
        self._core: Core = machines.core
        self._writer = machines.writer
        self._reader = machines.reader
        self._content = ContentSearch(machines.core)
        self._told: dict[str, float] = {}

    # --- one agent ------------------------------------------------------------------------------------------

    async def save(self, agent: Agent, /) -> Agent:
        """Create it, or replace what it said before; the newest save wins. Returned with its version.

        Raises:
            RejectedError: the name, type, status or metadata is none.
            UnavailableError, BackpressureError: nothing was written, try again later.
            OutcomeUnknownError: the answer was lost; saving it again is harmless.
        """
        content, ref = _content(agent), keys.agent_ref(agent.name)
        stored = await self._writer.write(self._profile(ref), content)
        return await self._saved(ref, agent, stored)

    async def update(self, agent: Agent, /) -> Agent:
        """Replace what was read, if nobody has since. Returned with its new version.

        Raises:
            NotFoundError: there is no such agent any more.
            ConflictError: somebody has saved, updated or deleted it since; find it and decide again.
            Otherwise as `save`.
        """
        content, ref = _content(agent), keys.agent_ref(agent.name)
        if agent.version is None and (await self.find(ref.text)).version is not None:
            raise ConflictError(f"agent {ref.text!r} was saved since it was read", hint="find it and decide again")
        try:
            stored = await self._writer.write_if(self._profile(ref), content, agent.version)
        except ConflictError as conflict:
            if await self._read(self._profile(ref)) is None:
                raise _absent() from conflict
            raise
        return await self._saved(ref, agent, stored)

    async def find(self, agent_id: str | UUID, /) -> Agent:
        """One agent, by its name or its id. One that only wrote state is found once SQL knows it.

        Raises:
            NotFoundError: nobody has saved it and it wrote no state, or it was deleted.
            UnavailableError: neither KV nor SQL could answer.
        """
        ref = await self._ref(agent_id)
        found, seen = await asyncio.gather(self._read(self._profile(ref)), self._read(self._heartbeat(ref)))
        seen_at = None if seen is None else from_us(seen.written_us)
        if found is not None:
            return _agent(ref.text, _said(found), found.version, found.written_us, seen_at)
        row = await self._core.table.registered(ref.id)
        if row is None or row.version is not None or await self._core.message(self._profile(ref)) is not None:
            raise _absent()
        return replace(_registered(row), seen_at=seen_at)

    async def delete(self, agent_id: str | UUID, /) -> None:
        """Forget what it said of itself; its state stays. An absent one is fine."""
        ref = await self._ref(agent_id)
        self._told.pop(ref.text, None)
        await self._writer.write(self._profile(ref), TOMBSTONE)
        await self._writer.write(self._heartbeat(ref), TOMBSTONE)

    async def heartbeat(self, agent_id: str | UUID, status: str | None = None) -> None:
        """Say that it is alive, and how it is. Cheap: a process sends one a second for each agent at most, and what
        others search is not written for it; a new status is an update of the agent, which comes to be by it.

        Raises:
            RejectedError: the status is none.
            ConflictError: others changed it again and again, until `retry.deadline_ms`.
            Otherwise as `save`.
        """
        ref = await self._ref(agent_id)
        if status is not None:
            await self._set_status(ref, _word(status, "status"))
        await self._sign(ref)

    # --- many -----------------------------------------------------------------------------------------------

    async def list(self, *, limit: int = 100, cursor: str | None = None) -> Page[Agent]:
        """All that are registered, by name: those that only wrote state as well, with defaults.

        Raises:
            NotFoundError: the cursor is none.
            UnavailableError: SQL cannot be reached.
        """
        return await self.search(limit=limit, cursor=cursor)

    async def search(
        self, where: Mapping[str, Any] | None = None, *, type: str | None = None, status: str | None = None,
        limit: int = 100, cursor: str | None = None,
    ) -> Page[Agent]:  # fmt: skip
        """Those whose metadata fits `where`, of this type and status, by name.

        Args:
            where: a filter of the metadata: `{"skills": {"contains": "dive"}, "depth.max_m": {"gte": 40}}` (see
                docs/knowledge.md for all of it). None: whatever it is.
            type, status: None: any.
            limit: so many at most, 1 to 1,000.
            cursor: the `.next` of the page before.

        Raises:
            RejectedError: `where` cannot be meant.
            NotFoundError: the cursor is none.
            UnavailableError: SQL cannot be reached.
        """
        cursors = Cursors(self._core.epochs.store_id, "agents")
        after = "" if cursor is None else cursors.read(cursor)[0]
        found = filters.parse({} if where is None else where)
        wanted_type = None if type is None else _word(type, "type")
        wanted_status = None if status is None else _word(status, "status")
        rows = await self._core.table.find_agents(after, page_limit(limit) + 1, wanted_type, wanted_status, found)
        more = len(rows) > limit
        return Page([_registered(row) for row in rows[:limit]], cursors.write(rows[limit - 1].name) if more else None)

    async def search_state(
        self, where: Mapping[str, Any], *, agent: str | UUID | None = None, key_prefix: str = "", limit: int = 100,
        cursor: str | None = None,
    ) -> Page[StateHit]:  # fmt: skip
        """What agents hold, by its content: live keys whose value fits `where`, as SQL has them, in a stable order.

        An index (`sql.search_index`) helps where something must be equal; else all there is may have to be read, which
        is given up after 8 s. Values
        above 512 KiB and those that SQL has refused are not found.

        Args:
            where: a filter of the value: `{"goal.name": "cave", "step": {"gt": 3}}`.
            agent: only this agent's keys.
            key_prefix: only keys that begin with it.
            limit: so many at most, 1 to 1,000; a page of large values may be shorter and still have a next one.
            cursor: the `.next` of the page before.

        Raises:
            RejectedError: `where` cannot be meant.
            NotFoundError: the cursor is none.
            UnavailableError: SQL cannot be reached, or it took too long: narrow it, or give it an index.
        """
        return await self._content.search(where, agent, key_prefix, page_limit(limit), cursor)

    async def search_index(self) -> SearchIndexState:
        """Which index `search_state` has, and how far a projection is behind. UnavailableError."""
        return await self._content.index()

    # --- within ---------------------------------------------------------------------------------------------

    async def _ref(self, agent_id: str | UUID) -> keys.AgentRef:
        """A name's id is a hash: only SQL can tell the name behind one."""
        if isinstance(agent_id, UUID) and agent_id.version == 8 and agent_id.variant == RFC_4122:
            row = await self._core.table.registered(agent_id)
            if row is not None:
                return keys.agent_ref(keys.from_sql_key(row.name))
        return keys.agent_ref(agent_id)

    def _profile(self, ref: keys.AgentRef) -> Target:
        return self._core.target(keys.PROFILES, ref.text)

    def _heartbeat(self, ref: keys.AgentRef) -> Target:
        return self._core.target(keys.HEARTBEATS, ref.text)

    async def _read(self, target: Target) -> Stored | None:
        core = self._core
        copy = core.cache.lookup(target.subject) if core.coherence.listening else None
        if copy is not None:
            core.counts.hits_l1 += 1
            return None if core.gone(copy) else copy
        found = await self._reader.read(target)
        return None if found is None else found[0]

    async def _saved(self, ref: keys.AgentRef, agent: Agent, stored: Stored) -> Agent:
        seen_at = from_us((await self._sign(ref)) or stored.written_us)
        return replace(
            agent, name=ref.text, version=stored.version, updated_at=from_us(stored.written_us), seen_at=seen_at
        )

    async def _sign(self, ref: keys.AgentRef) -> int | None:
        """A sign of life, unless there was one a moment ago; its time in µs."""
        now = time.monotonic()
        if now - self._told.get(ref.text, -1e9) < limits.HEARTBEAT_MS_MIN / 1000:
            return None
        if len(self._told) >= limits.HEARTBEAT_AGENTS_MAX:
            self._told.clear()
        stored = await self._writer.write(self._heartbeat(ref), _ALIVE)
        self._told[ref.text] = now
        return stored.written_us

    async def _set_status(self, ref: keys.AgentRef, status: str) -> None:
        backoff = Backoff(self._core.config.retry, self._core.config.retry.deadline_ms)
        target = self._profile(ref)
        while True:
            found = await self._read(target)
            agent = Agent(name=ref.text) if found is None else Agent(name=ref.text, **_said(found))
            if found is not None and agent.status == status:
                return
            content = _content(replace(agent, status=status))
            try:
                await self._writer.write_if(target, content, None if found is None else found.version)
                return
            except ConflictError as conflict:
                await backoff.pause(conflict)


def _content(agent: Agent) -> Content:
    """RejectedError unless it is an agent."""
    if not isinstance(agent, Agent):
        raise RejectedError(f"agent: an Agent is needed, not {type(agent).__name__}")
    if type(agent.metadata) is not dict:
        raise RejectedError(f"metadata: a dict is needed, not {type(agent.metadata).__name__}")
    said = {"type": _word(agent.type, "type"), "status": _word(agent.status, "status"), "metadata": agent.metadata}
    codec, body = values.encode(said)
    size = len(values.unpack(codec, body)[1])
    if size > limits.AGENT_METADATA_BYTES_MAX:
        raise RejectedError(f"metadata: {size} bytes encoded; the limit is {limits.AGENT_METADATA_BYTES_MAX}")
    return Content(codec, body)


def _word(word: object, what: str) -> str:
    if type(word) is not str:
        raise RejectedError(f"{what}: a str is needed, not {type(word).__name__}")
    if not 0 < len(word) <= limits.AGENT_WORD_CHARS_MAX or not word.isprintable():
        raise RejectedError(f"{what}: 1 to {limits.AGENT_WORD_CHARS_MAX} printable characters are needed")
    return word


def _said(stored: Stored) -> dict[str, Any]:
    said = values.decode(stored.codec, stored.body)
    if type(said) is not dict or said.keys() != {"type", "status", "metadata"}:
        raise CodecError("this is not what an agent says of itself")
    return said


def _agent(
    name: str, said: dict[str, Any], version: Version | None, updated_us: int, seen_at: datetime | None
) -> Agent:
    return Agent(name=name, **said, version=version, updated_at=from_us(updated_us), seen_at=seen_at)


def _registered(row: Registered) -> Agent:
    """An agent as SQL has it."""
    if row.raw is not None:
        said = values.decode(*values.from_sql(None, row.raw))
    else:
        metadata = values.decode("j", row.metadata.encode())
        said = {"type": row.agent_type, "status": row.status, "metadata": metadata}
    version = None if row.version is None or row.epoch is None else Version(row.epoch, row.version)
    seen_at = None if row.seen_us is None else from_us(row.seen_us)
    return _agent(keys.from_sql_key(row.name), said, version, row.updated_us, seen_at)


def _absent() -> NotFoundError:
    return NotFoundError("there is no such agent", hint="save it first")
