"""Restores: an agent, or several, become again what a checkpoint holds (I1, I9; flow rules 6, 16, 24).

Nothing goes back: what differs is written anew, deletes included, so that a restore has versions like every write,
flows to PostgreSQL, and is seen by watches. Before it a checkpoint is made, whose position P0 is the restore's moment:
a key is written only over a state that is not newer than P0, by compare-and-set, so what others wrote since stays.

What fits into one atomic batch is one: readers see the old state or the new one. More is several batches, of which
PostgreSQL is told before the first one: while `agents.restores` has a row, the agent is partly of the checkpoint,
partly as before. All that is to be written follows from the two checkpoints and P0, so anybody can finish it, twice
without harm: what is written already is newer than P0.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from hashlib import blake2b
from typing import Final, NamedTuple
from uuid import UUID, uuid4

import msgspec

from cenote import limits, points
from cenote.engine import entries
from cenote.engine.atomic import Atomic, side_by_side
from cenote.engine.blobs import moved, same_bytes
from cenote.engine.checkpoint import Checkpoint, Checkpoints
from cenote.engine.checkpoint_draft import wish
from cenote.engine.core import Core, reading
from cenote.engine.entries import Target
from cenote.engine.lifecycle import Lifecycle
from cenote.engine.restored import Restored, Restoring
from cenote.engine.waiting import until_mended
from cenote.engine.writer import TOMBSTONE, Base, Content, Writer
from cenote.errors import ConsistencyError, OutcomeUnknownError, RejectedError, UnavailableError
from cenote.kv.deadline import patient
from cenote.lifecycle import Event
from cenote.model import key as keys
from cenote.model.entry import Stored
from cenote.model.kept import Kept
from cenote.model.uuid7 import uuid7
from cenote.retry import Backoff
from cenote.sql.restores import RestoreRow, RestoreTable

log = logging.getLogger("cenote.engine")

EVERY_S: Final = 20.0
_NAMED_MAX: Final = 1_000
_GONE: Final = b""


class _Part:
    """One agent's part of a restore, and what became of it."""

    def __init__(self, agent: keys.AgentRef, to: Checkpoint, before: Checkpoint) -> None:
        self.agent = agent
        self.to = to
        self.before = before
        self.written = 0
        self.deleted = 0
        self.left: list[str] = []


class _Change(NamedTuple):
    """A key that is to be written."""

    part: _Part
    target: Target
    content: Content


class _Overtaken(Exception):
    """Some keys of a batch need no write any more."""

    def __init__(self, subjects: set[str]) -> None:
        super().__init__(f"{len(subjects)} keys")
        self.subjects = subjects


class Restorer:
    """Restores for one process."""

    def __init__(
        self, core: Core, writer: Writer, atomic: Atomic, checkpoints: Checkpoints, lifecycle: Lifecycle
    ) -> None:
        self._core = core
        self._writer = writer
        self._atomic = atomic
        self._checkpoints = checkpoints
        self._lifecycle = lifecycle
        self.table = RestoreTable(core.db)

    # --- verbs ------------------------------------------------------------------------------------------------

    async def restore(self, wanted: Sequence[tuple[keys.AgentRef, Checkpoint | UUID | str]]) -> list[Restored]:
        """Make each of these agents again what its checkpoint holds, all together.

        Raises:
            NotFoundError: one is no checkpoint of its agent; nothing was written.
            UnknownFormat, ConsistencyError: one is of a newer format, or damaged; nothing was written.
            UnavailableError, BackpressureError: until `restoring()` shows something, nothing was written; else it goes
                on when somebody restores the agent or finishes it.
        """
        agents = [agent for agent, _ in wanted]
        if len({agent.id for agent in agents}) < len(agents):
            raise RejectedError("restore: one checkpoint for each agent is needed")
        found = [await self._checkpoints.find(agent, given) for agent, given in wanted]
        for agent in agents:
            await self._give_way(agent)
        parts = await self._begun(agents, found)
        able = await self._atomic.able()
        first: list[_Change] = []
        more = False
        async with aclosing(self._pages(parts)) as pages:
            async for page in pages:
                if first or not able:
                    more = True
                    break
                first = page
        if more:
            await self._run(await self._recorded(parts), parts)
            return _results(parts, at_once=False)
        await self._write(first)
        if points.armed:
            await points.hit("restore.written")
        await self._tell(parts)
        return _results(parts, at_once=True)

    async def finish(self, agent: keys.AgentRef) -> list[Restored]:
        """Go on with the restore of this agent that somebody has begun; [] when there is none. Raises as `restore`."""
        done: list[Restored] = []
        while rows := await self.table.find([agent.id]):
            parts = [await self._part(row) for row in rows]
            await self._run(rows[0].restore_id, parts)
            done += _results(parts, at_once=False)
        return done

    async def restoring(self, agent: keys.AgentRef) -> Restoring | None:
        """The restore of this agent that is not finished. Raises UnavailableError."""
        rows = await self.table.find([agent.id])
        mine = next((row for row in rows if row.agent_id == agent.id), None)
        if mine is None:
            return None
        return Restoring(
            id=mine.restore_id, agents=tuple(_ref(row).text for row in rows), checkpoint=mine.checkpoint_id,
            before=mine.before_id, begun_at=mine.begun_at, renewed_at=mine.renewed_at,
        )  # fmt: skip

    async def tend(self) -> None:
        """Finish what somebody has begun and left: the active flusher does it now and then."""
        for agent_id in await self.table.left(limits.RESTORE_SILENT_S):
            for row in await self.table.find([agent_id]):
                if row.agent_id == agent_id:
                    log.warning("a restore of %r was left unfinished; it goes on", row.agent)
                    await self.finish(_ref(row))

    # --- how it is done ---------------------------------------------------------------------------------------

    async def _give_way(self, agent: keys.AgentRef) -> None:
        """An earlier restore is finished first; one that never can be is over, for all is written anew now."""
        try:
            await self.finish(agent)
        except ConsistencyError as damage:
            log.warning("a restore of %r that cannot be finished makes room for another: %s", agent.text, damage)
            for row in await self.table.find([agent.id]):
                await self.table.done(row.restore_id)

    async def _begun(self, agents: Sequence[keys.AgentRef], found: Sequence[Checkpoint]) -> list[_Part]:
        """What they are now is kept first."""
        names = ", ".join(str(one.seq) for one in found)[: limits.CHECKPOINT_LABEL_CHARS_MAX - 20]
        before = await self._checkpoints.create_many(agents, wish(f"before restore of {names}", None, keep=False))
        if points.armed:
            await points.hit("restore.kept")
        return [_Part(*one) for one in zip(agents, found, before, strict=True)]

    async def _recorded(self, parts: Sequence[_Part]) -> UUID:
        restore_id = uuid7()
        while not await self.table.add(
            restore_id, [(part.agent.id, keys.sql_key(part.agent.text)) for part in parts],
            [part.to.id for part in parts], [part.before.id for part in parts], parts[0].before.version,
        ):  # fmt: skip
            if any(row.restore_id == restore_id for row in await self.table.find([parts[0].agent.id])):
                break  # a repeat of what was committed already
            for part in parts:
                await self.finish(part.agent)
        if points.armed:
            await points.hit("restore.recorded")
        return restore_id

    async def _part(self, row: RestoreRow) -> _Part:
        agent = _ref(row)
        to, before = [await self._checkpoints.find(agent, one) for one in (row.checkpoint_id, row.before_id)]
        return _Part(agent, to, before)

    async def _run(self, restore_id: UUID, parts: Sequence[_Part]) -> None:
        """All batches of a recorded restore, those that are written already included."""
        async for page in self._pages(parts):
            if not await self.table.renew(restore_id):
                return  # somebody else has finished it
            await self._write(page)
            if points.armed:
                await points.hit("restore.batch")
        await self.table.done(restore_id)
        await self._tell(parts)
        if points.armed:
            await points.hit("restore.done")

    async def _tell(self, parts: Sequence[_Part]) -> None:
        for part in parts:
            counts = {"written": part.written, "deleted": part.deleted}
            of, before = str(part.to.id), str(part.before.id)
            await self._lifecycle.record(part.agent, Event.RESTORE, checkpoint=of, before=before, **counts)

    async def _pages(self, parts: Sequence[_Part]) -> AsyncGenerator[list[_Change], None]:
        """What differs, as much as a batch takes at a time; the same each time but for what expires meanwhile."""
        page: list[_Change] = []
        size = 0
        for part in parts:
            async for change in self._changes(part):
                if page and (
                    len(page) >= limits.ATOMIC_KEYS_MAX or size + len(change.content.body) > limits.RESTORE_BATCH_BYTES
                ):
                    yield page
                    page, size = [], 0
                page.append(change)
                size += len(change.content.body)
        if page:
            yield page

    async def _changes(self, part: _Part) -> AsyncIterator[_Change]:
        """Memory: names and a digest of each key."""
        core, agent = self._core, part.agent
        was: dict[str, bytes] = {}
        async for kept_page in self._checkpoints.fold(agent, part.before.seq):
            was.update((kept.key, _mark(kept)) for kept in kept_page)
        async for kept_page in self._checkpoints.fold(agent, part.to.seq):
            now_ms = core.now_ms()
            for kept in kept_page:
                if not kept.live(now_ms):
                    continue  # its time is over: it is not there any more, whatever it was
                if was.pop(kept.key, None) != _mark(kept):  # versions prove nothing: it may come from another store
                    content = Content(kept.codec, kept.body, kept.expires_ms)
                    yield _Change(part, core.target(agent, kept.key), content)
        for key in was:
            yield _Change(part, core.target(agent, key), TOMBSTONE)

    # --- one batch --------------------------------------------------------------------------------------------

    async def _write(self, page: Sequence[_Change]) -> None:
        """Write what is not overtaken, all or none where NATS can; repeated without harm."""
        core = self._core
        backoff = Backoff(patient(core.config.retry), core.config.retry.deadline_ms)
        left = {change.target.subject: change for change in page}
        able = await self._atomic.able()
        own: dict[str, Content] = {}
        while left:
            try:
                await self._placed(left.values(), own)
                items = [(change.target, own.get(subject, change.content)) for subject, change in left.items()]

                async def look(pauses: Backoff) -> Mapping[str, Base]:
                    return await self._bases(left, pauses)

                if able:
                    await self._atomic.over(items, look)
                else:
                    await self._one_by_one(items, await look(backoff), backoff)
                for change in left.values():
                    _count(change)
                return
            except _Overtaken as overtaken:
                for subject in overtaken.subjects:
                    del left[subject]
            except OutcomeUnknownError as error:  # what was written is newer than the moment: it is met as overtaken
                await backoff.pause(UnavailableError(str(error), tier="DISTRIBUTED_KV"))

    async def _one_by_one(
        self, items: Sequence[tuple[Target, Content]], bases: Mapping[str, Base], backoff: Backoff
    ) -> None:
        writer = self._writer
        for start in range(0, len(items), limits.RESTORE_SIDE_BY_SIDE):
            some = items[start : start + limits.RESTORE_SIDE_BY_SIDE]
            done = await side_by_side(
                [writer.replace(one, bases[one.subject], content, writer.next_operation(), backoff)
                 for one, content in some]
            )  # fmt: skip
            if None in done:
                raise OutcomeUnknownError("others wrote a key of a restore; it is looked at again")

    async def _bases(self, left: Mapping[str, _Change], backoff: Backoff) -> dict[str, Base]:
        """What the keys hold, each not newer than the restore's moment.

        Raises:
            _Overtaken: some are newer, or hold what they are to hold.
        """
        bases = await self._held(list(left.values()), backoff)
        missed = False
        if any(base.held.version == entries.ABSENT.version for base in bases.values()):
            moment = next(iter(left.values())).part.before.version
            missed = await self.table.floor_above(moment)  # asked last: what was collected before has raised it
        over = {subject for subject, base in bases.items() if self._overtaken(left[subject], base, missed=missed)}
        if over:
            raise _Overtaken(over)
        return bases

    def _overtaken(self, change: _Change, base: Base, *, missed: bool) -> bool:
        held, content, part = base.held, change.content, change.part
        in_place = not base.live if content.deleted else base.live and _mark(held) == _mark(content)
        if in_place:
            if held.version > part.before.version:
                _count(change)  # by a batch whose answer was lost, or whose process died
            return True
        forgotten = missed and held.version == entries.ABSENT.version  # a delete since may have been collected
        if held.version > part.before.version or forgotten:
            part.left.append(change.target.key)
            return True
        return False

    async def _held(self, changes: Sequence[_Change], backoff: Backoff) -> dict[str, Base]:
        """Of each key what KV holds; what it lacks is brought there first (F-mark)."""
        core = self._core
        if core.mended != core.link.generation:
            await until_mended(core, backoff.left_ms)
        generation = core.link.generation
        bases: dict[str, Base] = {}
        if core.replicas is None:  # a follower may be behind
            with reading():
                messages, _ = await core.messages([change.target for change in changes])
            for subject, message in messages.items():
                stored = entries.from_message(message, core.epochs)
                if entries.believed(stored, message) and not entries.nobody(stored):
                    bases[subject] = Base(stored, not core.gone(stored), generation)
        rest = [change.target for change in changes if change.target.subject not in bases]
        for start in range(0, len(rest), limits.RESTORE_SIDE_BY_SIDE):
            some = rest[start : start + limits.RESTORE_SIDE_BY_SIDE]
            found = await side_by_side([self._writer.base(target, backoff) for target in some])
            bases |= {target.subject: base for target, base in zip(some, found, strict=True)}
        if any(base.generation != generation for base in bases.values()):
            raise UnavailableError("reconnected while the keys of a restore were read", tier="DISTRIBUTED_KV")
        return bases

    async def _placed(self, changes: Iterable[_Change], own: dict[str, Content]) -> None:
        """Large values get bytes of their own, for a blob belongs to one write (rule 20)."""
        for _, target, content in changes:
            if content.codec != entries.BLOB or target.subject in own:
                continue
            blob_id = uuid4()
            of, body = moved(content.body, blob_id)
            if not await self.table.copy_blob(blob_id, of, target.agent.id, target.row_key):
                raise ConsistencyError(f"I1: the bytes of {target.key!r} in a checkpoint are missing", key=target.key)
            own[target.subject] = msgspec.structs.replace(content, body=body)


def _count(change: _Change) -> None:
    if change.content.deleted:
        change.part.deleted += 1
    else:
        change.part.written += 1


def _mark(one: Kept | Stored | Content) -> bytes:
    """Equal for equal values that end at the same time; which blob holds large bytes does not matter."""
    if one.deleted:
        return _GONE
    words = same_bytes(one.body) if one.codec == entries.BLOB else one.body
    return blake2b(b"%b;%d;%b" % (one.codec.encode(), one.expires_ms or 0, words), digest_size=16).digest()


def _results(parts: Sequence[_Part], *, at_once: bool) -> list[Restored]:
    return [
        Restored(
            agent=part.agent.text, checkpoint=part.to, before=part.before, written=part.written, deleted=part.deleted,
            left=tuple(part.left[:_NAMED_MAX]), at_once=at_once,
        )
        for part in parts
    ]  # fmt: skip


def _ref(row: RestoreRow) -> keys.AgentRef:
    return keys.agent_ref(keys.from_sql_key(row.agent))
