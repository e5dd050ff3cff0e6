"""Checkpoints: what an agent was, kept in PostgreSQL as a base and what has changed since (I9; decision 0007).

A small checkpoint is one statement. The parts of a large one go there first, under an id that nobody knows, and are
seen once the checkpoint is. A delta needs everything that it stands on; nothing that is needed is ever removed.
"""

import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from cenote import limits, points
from cenote.engine.blobs import reference_id
from cenote.engine.checkpoint_draft import NO_WISH, Draft, Wish
from cenote.engine.core import Core
from cenote.engine.cut import Cut, CutAgain, Place
from cenote.engine.entries import BLOB
from cenote.engine.fold import Fold, digest_of, part_digest
from cenote.engine.waiting import until_mended
from cenote.errors import CenoteError, NotFoundError, RejectedError, UnavailableError
from cenote.kv.deadline import patient
from cenote.model import key as keys
from cenote.model.entry import Version, from_us
from cenote.model.kept import FORMAT, Kept, Packer
from cenote.model.page import Cursors, Page, page_limit
from cenote.model.uuid7 import uuid7
from cenote.retry import Backoff
from cenote.sql.checkpoints import CheckpointRow, CheckpointTable, NewCheckpoint, Parent
from cenote.sql.jsonb import decoded
from cenote.sql.transaction import Isolation, Transaction, transact

log = logging.getLogger("cenote.engine")

_RECENT_MAX: Final = 10_000
_ABOVE_ALL: Final = 2**63 - 1


class Whole(CutAgain):
    """A delta may miss something here: the next attempt takes everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What an agent was at one moment.

    Attributes:
        id: its own; `agent.get(key, at=…)` and the like take it, or this.
        agent: whose.
        seq: 1, 2, … of this agent.
        at: the KV server's time of the cut.
        version: the epoch, and the position in the stream (`kv_revision`) at which it was cut.
        label, metadata, keep: as given to `checkpoint()`; one that is to be kept is never removed by retention.
        parent: the checkpoint that this one only holds the differences to; None: it is whole.
        group: the same for all that were cut together; None: it was cut alone.
        changed, removed: how many keys it holds itself: those of a whole one, or the differences.
        bytes: what it takes itself, before PostgreSQL's compression.
        digest: BLAKE2b over what it holds.
        created_at: PostgreSQL's time.
    """

    id: UUID
    agent: str
    seq: int
    at: datetime
    version: Version
    label: str | None
    metadata: Any
    keep: bool
    parent: UUID | None
    group: UUID | None
    changed: int
    removed: int
    bytes: int
    digest: str
    created_at: datetime


class Checkpoints:
    """Makes, finds and reads them; one for each process, for it remembers what it has just cut."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.table = CheckpointTable(core.db)
        self._recent: dict[UUID, tuple[Parent, float]] = {}

    # --- making ---------------------------------------------------------------------------------------------

    async def create(self, agent: keys.AgentRef, of: Wish = NO_WISH, deadline_ms: float | None = None) -> Checkpoint:
        """Cut one agent and keep what it is. Raises as `create_many`."""
        return (await self.create_many([agent], of, deadline_ms))[0]

    async def create_many(
        self, agents: Sequence[keys.AgentRef], of: Wish = NO_WISH, deadline_ms: float | None = None
    ) -> list[Checkpoint]:
        """Cut several agents at one moment; in their order.

        Raises:
            UnavailableError: no cut was made within the deadline; nothing was kept.
        """
        core = self._core
        backoff = Backoff(patient(core.config.retry), deadline_ms or core.config.retry.deadline_ms)
        ids = [uuid7() for _ in agents]
        group = uuid7() if len(agents) > 1 else None
        whole, fresh = False, False
        while True:
            drafts: list[Draft] = []
            try:
                drafts = await self._drafts(agents, whole=whole, fresh=fresh)
                begun_s = time.monotonic()
                place = await Cut(core, self.table, [draft.share for draft in drafts]).take()
                made = await self._add(drafts, place, of, group, ids)
                break
            except UnavailableError as error:
                for draft in drafts:
                    await draft.forget()
                whole, fresh = whole or isinstance(error, Whole), True
                if not isinstance(error, CutAgain) and (known := await self._known(agents, ids)) is not None:
                    return known
                await backoff.pause(error)
        for draft, row in zip(drafts, made, strict=True):
            self._remember(draft, row, place, begun_s)
        return [
            checkpoint_of(agent, await self._rebase_in_time(agent, row))
            for agent, row in zip(agents, made, strict=True)
        ]

    async def _drafts(self, agents: Sequence[keys.AgentRef], *, whole: bool, fresh: bool) -> list[Draft]:
        core = self._core
        if core.mended != core.link.generation:
            await until_mended(core, core.config.kv.deadline_ms)
        drafts = []
        for agent in agents:
            parent, begun_s = None, None
            recent = None if fresh else self._recent.get(agent.id)
            if recent is not None:
                parent, begun_s = recent
            else:
                parent = await self.table.newest(agent.id)
            usable = parent if parent is not None and not whole and self._may_stand_on(parent) else None
            young = begun_s is not None and (time.monotonic() - begun_s) * 1000 < limits.CHECKPOINT_TAIL_MS_MAX / 2
            if parent is None:
                await core.rows.copied(agent.id)
            seq = 1 if parent is None else parent.seq + 1
            drafts.append(Draft(self.table, agent, seq, usable, begun_s if usable and young else None))
        return drafts

    def _may_stand_on(self, parent: Parent) -> bool:
        core = self._core
        same = (parent.epoch, parent.incarnation) == (core.epochs.newest, core.incarnation)
        return same and bool(core.incarnation) and parent.format <= FORMAT

    async def _add(
        self, drafts: Sequence[Draft], place: Place, of: Wish, group: UUID | None, ids: Sequence[UUID]
    ) -> list[CheckpointRow]:
        rows = [draft.finished(place, of, group, one) for draft, one in zip(drafts, ids, strict=True)]
        if any(row.parent_id and draft.parent and draft.parent.incarnation != place.incarnation
               for row, draft in zip(rows, drafts, strict=True)):  # fmt: skip
            raise CutAgain("NATS was restarted while a checkpoint was cut", tier="DISTRIBUTED_KV")
        if points.armed:
            await points.hit("checkpoint.parts")
        if len(drafts) == 1:
            made = [await self._add_one(drafts[0], rows[0], None)]
        else:

            async def all_of_them(tx: Transaction) -> list[CheckpointRow]:
                return [await self._add_one(draft, row, tx) for draft, row in zip(drafts, rows, strict=True)]

            made = await transact(self._core.db, all_of_them, isolation=Isolation.READ_COMMITTED)
        if points.armed:
            await points.hit("checkpoint.added")
        return made

    async def _add_one(self, draft: Draft, row: NewCheckpoint, tx: Transaction | None) -> CheckpointRow:
        revision = draft.parent.revision if draft.parent else 0
        added = await self.table.add(row, draft.share.packer.parts, draft.first, revision, draft.share.blobs, tx)
        if not added.guarded:
            raise Whole("the epoch is another one, or deleted keys may be missed", tier="RELATIONAL_DB")
        if added.created_at is None:
            raise CutAgain("another process made a checkpoint of the agent meanwhile", tier="RELATIONAL_DB")
        return CheckpointRow(
            row.id, row.agent_id, row.seq, row.parent_id, row.epoch, row.revision, row.cut_us, row.label, row.metadata,
            row.raw, row.keep, row.group_id, row.changed, row.removed, row.size, row.data_id, row.format,
            row.part_digests, row.digest, added.created_at,
        )  # fmt: skip

    async def _known(self, agents: Sequence[keys.AgentRef], ids: Sequence[UUID]) -> list[Checkpoint] | None:
        """What an addition whose answer was lost has left: all of it, or nothing."""
        try:
            rows = [await self.table.find(one, agent.id) for agent, one in zip(agents, ids, strict=True)]
        except UnavailableError:
            return None
        found = [(agent, row) for agent, row in zip(agents, rows, strict=True) if row is not None]
        return [checkpoint_of(*one) for one in found] if len(found) == len(rows) else None

    def _remember(self, draft: Draft, row: CheckpointRow, place: Place, begun_s: float) -> Parent:
        above = draft.parent
        if len(self._recent) >= _RECENT_MAX:
            self._recent.clear()
        parent = Parent(
            row.id, row.seq, row.parent_id, above.depth + 1 if above else 0,
            above.chain_bytes + row.size if above else 0, above.base_bytes if above else row.size, *place.version,
            place.incarnation, row.format,
        )  # fmt: skip
        self._recent[row.agent_id] = parent, begun_s
        return parent

    # --- bases ----------------------------------------------------------------------------------------------

    async def _rebase_in_time(self, agent: keys.AgentRef, row: CheckpointRow) -> CheckpointRow:
        """Deltas cost whoever folds them: after so many the newest becomes a base. That it cannot be done now fails
        nobody; the next one tries again."""
        parent, begun_s = self._recent[agent.id]
        share = max(limits.CHECKPOINT_PART_BYTES // 8, parent.base_bytes // limits.CHECKPOINT_DELTAS_SHARE)
        if parent.depth < limits.CHECKPOINT_DELTAS_MAX and parent.chain_bytes <= share:
            return row
        try:
            base = await self.rebase(agent, row)
        except CenoteError as error:
            log.warning("a checkpoint of %r stays a delta for now: %s", agent.text, error)
            return row
        self._recent[agent.id] = parent._replace(parent_id=None, depth=0, chain_bytes=0, base_bytes=base.size), begun_s
        return base

    async def rebase(self, agent: keys.AgentRef, row: CheckpointRow) -> CheckpointRow:
        """Make a delta a base, of what is kept already; what it stood on is then needed by others only."""
        digests: list[bytes] = []
        blobs: list[UUID] = []
        data_id, packer, first, size, count = uuid7(), Packer(), 0, 0, 0

        async def put() -> None:
            nonlocal first, size
            parts, packer.parts = packer.parts, []
            digests.extend(map(part_digest, parts))
            size += sum(map(len, parts))
            await self.table.put_parts(data_id, first, parts)
            first += len(parts)

        async for page in self.fold(agent, row.seq):
            for kept in page:
                packer.add(kept)
                if kept.codec == BLOB:
                    blobs.append(reference_id(kept))
            count += len(page)
            if sum(map(len, packer.parts)) > limits.CHECKPOINT_SPILL_BYTES:
                await put()
        packer.close()
        await put()
        if points.armed:
            await points.hit("checkpoint.rebase")
        base = row._replace(
            parent_id=None, data_id=data_id, size=size, changed=count, removed=0, format=FORMAT,
            part_digests=b"".join(digests),
        )  # fmt: skip
        base = base._replace(digest=digest_of(base))
        done = await self.table.rebase(row, base, blobs)
        await self.table.drop_parts(row.data_id if done else data_id)
        return base if done else row

    # --- reading --------------------------------------------------------------------------------------------

    def fold(self, agent: keys.AgentRef, seq: int, *, containing: str | None = None) -> AsyncIterator[list[Kept]]:
        """What was live at a cut, in pages, each key once. Raises as `Fold.pages`."""
        return Fold(self.table, agent, seq, containing=containing).pages()

    async def find(self, agent: keys.AgentRef, given: "Checkpoint | UUID | str") -> Checkpoint:
        """A checkpoint of this agent. NotFoundError for an unknown one and for another agent's, with the same words."""
        row = await self.table.find(_id_of(given), agent.id)
        if row is None:
            raise NotFoundError("there is no such checkpoint of this agent")
        return checkpoint_of(agent, row)

    async def page(self, agent: keys.AgentRef, cursor: str | None, limit: int) -> Page[Checkpoint]:
        """The agent's checkpoints, the newest first."""
        cursors = Cursors(self._core.epochs.store_id, f"checkpoints {agent.id}")
        below = _ABOVE_ALL if cursor is None else cursors.read(cursor)[0]
        rows = await self.table.page(agent.id, below, page_limit(limit) + 1)
        more = cursors.write(rows[limit - 1].seq) if len(rows) > limit else None
        return Page([checkpoint_of(agent, row) for row in rows[:limit]], more)


def _id_of(given: Checkpoint | UUID | str) -> UUID:
    if isinstance(given, Checkpoint):
        return given.id
    if isinstance(given, UUID):
        return given
    if type(given) is not str:
        raise RejectedError(f"checkpoint: a Checkpoint or its id is needed, not {type(given).__name__}")
    try:
        return UUID(given)
    except ValueError:
        return UUID(int=0)  # nobody's


def checkpoint_of(agent: keys.AgentRef, row: CheckpointRow) -> Checkpoint:
    """A row as users see it."""
    return Checkpoint(
        id=row.id, agent=agent.text, seq=row.seq, at=from_us(row.cut_us), version=Version(row.epoch, row.revision),
        label=None if row.label is None else keys.from_sql_key(row.label),
        metadata=None if row.metadata is None and row.raw is None else decoded(row.metadata, row.raw), keep=row.keep,
        parent=row.parent_id, group=row.group_id, changed=row.changed, removed=row.removed, bytes=row.size,
        digest=row.digest.hex(), created_at=row.created_at,
    )  # fmt: skip
