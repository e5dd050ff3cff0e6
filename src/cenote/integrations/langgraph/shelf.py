"""Where checkpoints stand in a store: a thread is an agent, a checkpoint one key of it.

The record of a checkpoint is one entry, so nobody sees a part of it; larger values come before what refers to them. The
head of a namespace, the greatest id in it, moves by compare-and-set: of two processes at one thread the newer
checkpoint stays. A head whose record is not there (a process died between the two) is looked for among all. An agent of
its own lists the threads, and which of them a run touched, before anything of theirs is written.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, Final, NamedTuple
from uuid import uuid4
from weakref import WeakValueDictionary

from langgraph.checkpoint.serde.base import SerializerProtocol

from cenote.agent import AgentState
from cenote.errors import ConsistencyError
from cenote.integrations.langgraph import records
from cenote.integrations.langgraph.records import Body, Draft, Kept, Record, Typed
from cenote.store import Store

_SEEN_MAX: Final = 20_000
_BODIES_CHARS_MAX: Final = 32 * 1024 * 1024
_SIDE_BY_SIDE: Final = 64


class Found(NamedTuple):
    """A checkpoint with its values, those that ancestors hold included, and the writes that wait: task, channel and
    value of each, in the order in which a step applies them."""

    record: Record
    body: Body
    values: dict[str, Typed]
    writes: list[tuple[str, str, Typed]]


class Shelf:
    """The checkpoints of all threads of one prefix. Its calls run on the store's event loop."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self.index = store.agent(f"{prefix}:index")
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._seen: dict[tuple[str, str], None] = {}
        self._bodies = _Bodies()

    def agent(self, thread: str) -> AgentState:
        """The agent in which a thread is kept."""
        return self._store.agent(f"{self._prefix}/{records.token(thread)}")

    # --- writing --------------------------------------------------------------------------------------------

    async def put(self, thread: str, given: Draft, serde: SerializerProtocol) -> None:
        """Keep a checkpoint; what was kept under its id, but for its writes, goes."""
        agent, record, body = self.agent(thread), given.record, given.body
        ns, parent = record["ns"], record["parent"]
        await self.enlist(thread, records.run_ids([record]))
        before = await self.record(agent, ns, parent) if parent else None
        written = records.settle(given, (parent, self._body(agent, before)) if before else None, serde)
        for name, value in written.items():
            body.values[name] = await self._placed(agent, value)
        record["body"] = records.sealed(body)
        await _both(self._keep(agent, record), self.move_head(agent, ns, record["id"]))

    async def put_writes(
        self, thread: str, place: tuple[str, str], task: tuple[str, str], writes: Sequence[tuple[int, str, Typed]]
    ) -> None:
        """Keep what a task (id and path) wrote on top of a checkpoint (namespace and id)."""
        agent, key = self.agent(thread), records.record_key(*place)
        new = [
            records.write(task, index, channel, await self._placed(agent, value)) for index, channel, value in writes
        ]

        def join(old: Record) -> Record:
            return old | {"writes": records.joined(old["writes"], new)}

        await self.enlist(thread, ())
        async with self._lock(agent, key):
            self._meet(agent, key)
            await agent.update(key, join, default={"writes": []})

    async def move_head(self, agent: AgentState, ns: str, checkpoint_id: str) -> None:
        """Make this the head, unless a newer one is."""
        await agent.update(records.head_key(ns), lambda old: max(old, checkpoint_id), default="")

    async def enlist(self, thread: str, runs: Iterable[str]) -> None:
        """Note that there is such a thread, and that these runs touch it."""
        own = records.token(thread)
        for key in (f"t.{own}", *(f"r.{records.token(run)}.{own}" for run in runs)):
            if (self.index.name, key) not in self._seen:
                await self.index.put(key, thread)
                self._meet(self.index, key)

    async def delete(self, agent: AgentState, keys: Sequence[str]) -> None:
        """Delete these."""
        for start in range(0, len(keys), _SIDE_BY_SIDE):
            await asyncio.gather(*(agent.delete(key) for key in keys[start : start + _SIDE_BY_SIDE]))
        for key in keys:
            self._seen.pop((agent.name, key), None)

    async def _keep(self, agent: AgentState, record: Record) -> None:
        key = records.record_key(record["ns"], record["id"])
        async with self._lock(agent, key):
            if self._meet(agent, key):  # an id that this process has not read or written is its run's own, and new
                await agent.put(key, record | {"writes": []})
            else:
                await agent.update(key, lambda old: record | {"writes": old["writes"]}, default={"writes": []})

    async def _placed(self, agent: AgentState, value: Typed) -> Kept:
        if len(value[1]) <= records.INLINE_BYTES_MAX:
            return value
        key = f"b.{uuid4().hex}"
        await agent.put(key, value[1])
        return value[0], key

    def _meet(self, agent: AgentState, key: str) -> bool:
        """Whether this process meets a key for the first time."""
        place = (agent.name, key)
        if place in self._seen:
            return False
        self._seen[place] = None
        if len(self._seen) > _SEEN_MAX:
            del self._seen[next(iter(self._seen))]
        return True

    def _lock(self, agent: AgentState, key: str) -> asyncio.Lock:
        """Within a process, a checkpoint and the writes on top of it come one after the other: these may be first."""
        return self._locks.setdefault((agent.name, key), asyncio.Lock())

    # --- reading --------------------------------------------------------------------------------------------

    async def load(self, thread: str, ns: str, checkpoint_id: str | None) -> Found | None:
        """A checkpoint, or the newest of the namespace; None when there is none."""
        agent = self.agent(thread)
        record = await self.named(agent, ns, checkpoint_id)
        if record is None:
            return None
        try:
            return await self._found(agent, record)
        except ConsistencyError:  # somebody prunes: what lost a value has it in its own record by then
            again = await self.named(agent, ns, record["id"])
            if again is None or again == record:
                raise
            return await self._found(agent, again)

    async def newest_first(self, thread: str | None, ns: str | None) -> list[tuple[str, str, str]]:
        """Thread, namespace and id of each checkpoint; of all threads and namespaces when None."""
        threads = [thread] if thread is not None else await self.threads("t.")
        places = [
            (one, record["ns"], record["id"]) for one in threads async for record in self.all(self.agent(one), ns)
        ]
        return sorted(places, key=lambda place: place[2], reverse=True)

    async def many(self, places: Iterable[tuple[str, str, str]]) -> list[Found | None]:
        """Several checkpoints; None for those that went meanwhile."""
        return await asyncio.gather(*(self.load(*place) for place in places))

    async def history(
        self, thread: str, ns: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> dict[str, tuple[list[tuple[str, str, Typed]], Typed | None]]:
        """Of each channel the writes on the way to a checkpoint since its value was stored last, oldest first, and that
        value, if there is one. The writes on top of the checkpoint where it stands come after it."""
        agent = self.agent(thread)
        record = await self.named(agent, ns, checkpoint_id)
        writes: dict[str, list[tuple[str, str, Typed]]] = {name: [] for name in channels}
        seeds: dict[str, Typed] = {}
        while record is not None and record["parent"] and len(seeds) < len(writes):
            record = await self.record(agent, ns, record["parent"])
            if record is None:
                break
            wanted = writes.keys() - seeds.keys()
            waiting = await self._writes(agent, [one for one in record["writes"] if one[3] in wanted])
            for name in wanted:
                writes[name][:0] = [one for one in waiting if one[1] == name]
            seeds |= await self._values(agent, record, wanted)
        return {name: (writes[name], seeds.get(name)) for name in channels}

    async def named(self, agent: AgentState, ns: str, checkpoint_id: str | None) -> Record | None:
        """The record of a checkpoint, or of the newest."""
        if checkpoint_id is not None:
            return await self.record(agent, ns, checkpoint_id)
        head = await agent.get(records.head_key(ns))
        if head is None:
            return None
        record = await self.record(agent, ns, head)
        if record is None:  # whoever wrote it died, or it was deleted: the one before
            ids = [one["id"] async for one in self.all(agent, ns)]
            record = await self.record(agent, ns, max(ids)) if ids else None
        return record

    async def record(self, agent: AgentState, ns: str, checkpoint_id: str) -> Record | None:
        """The record of a checkpoint."""
        key = records.record_key(ns, checkpoint_id)
        record: Record | None = await agent.get(key)
        if not records.complete(record):
            return None
        self._meet(agent, key)
        return record

    async def all(self, agent: AgentState, ns: str | None) -> AsyncIterator[Record]:
        """Every record of an agent, or of one namespace of it."""
        async for _, record in agent.items("c." if ns is None else records.namespace_prefix(ns)):
            if records.complete(record):
                yield record

    async def threads(self, prefix: str) -> list[str]:
        """Threads that are listed under keys with this prefix."""
        return sorted({thread async for _, thread in self.index.items(prefix)})

    async def _found(self, agent: AgentState, record: Record) -> Found:
        writes = await self._writes(agent, record["writes"])
        return Found(record, self._body(agent, record), await self._values(agent, record, None), writes)

    async def _values(self, agent: AgentState, record: Record, wanted: set[str] | None) -> dict[str, Typed]:
        body, ns = self._body(agent, record), record["ns"]
        values = dict(body.values)
        for holder, names in body.held.items():
            if wanted is not None and wanted.isdisjoint(names):
                continue
            home = self._bodies.get((agent.name, ns, holder))
            if home is None:
                there = await self.record(agent, ns, holder)
                home = self._body(agent, there) if there else None
            if home is None or not home.values.keys() >= set(names):
                raise ConsistencyError(
                    f"checkpoint {record['id']} needs values of {holder}, which are not there",
                    hint="delete and prune only where nothing runs",
                )
            values |= {name: home.values[name] for name in names}
        kept = {name: value for name, value in values.items() if wanted is None or name in wanted}
        return dict(zip(kept, await self._near(agent, list(kept.values())), strict=True))

    async def _writes(self, agent: AgentState, writes: Sequence[records.Write]) -> list[tuple[str, str, Typed]]:
        values = await self._near(agent, [records.value_of(one) for one in writes])
        return [(one[0], one[3], value) for one, value in zip(writes, values, strict=True)]

    async def _near(self, agent: AgentState, values: list[Kept]) -> list[Typed]:
        """These values, those whose bytes have a key of their own fetched."""
        far = [data for _, data in values if isinstance(data, str)]
        fetched = dict(zip(far, await asyncio.gather(*map(agent.get, far)), strict=True)) if far else {}
        if None in fetched.values():
            raise ConsistencyError(f"bytes of a value of {agent.name!r} are not there")
        return [(kind, fetched[data] if isinstance(data, str) else data) for kind, data in values]

    def _body(self, agent: AgentState, record: Record) -> Body:
        return self._bodies.open((agent.name, record["ns"], record["id"]), record["body"])


class _Bodies:
    """Bodies that were opened lately: a checkpoint's values are read again with each of its descendants. They do not
    change, or only so that they hold more, hence none has to be asked for anew."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, str], tuple[str, Body]] = {}
        self._chars = 0

    def get(self, place: tuple[str, str, str]) -> Body | None:
        """The body of a checkpoint (agent, namespace, id), if it is here."""
        kept = self._kept.get(place)
        return None if kept is None else kept[1]

    def open(self, place: tuple[str, str, str], text: str) -> Body:
        """What a text says."""
        kept = self._kept.get(place)
        if kept is not None and kept[0] == text:
            return kept[1]
        body = records.opened(text)
        self._chars += len(text) - (len(self._kept.pop(place)[0]) if kept else 0)
        self._kept[place] = (text, body)
        while self._chars > _BODIES_CHARS_MAX:
            self._chars -= len(self._kept.pop(next(iter(self._kept)))[0])
        return body


async def _both(*works: Coroutine[Any, Any, None]) -> None:
    """Do these side by side; raise the first error once all have ended."""
    for outcome in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
