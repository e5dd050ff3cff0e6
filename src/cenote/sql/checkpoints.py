"""`agents.checkpoints` and their parts, as PostgreSQL has them."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from cenote.sql.pool import Database
from cenote.sql.transaction import Transaction


class NewerRow(NamedTuple):
    """What SQL says of a key of which KV showed nothing as new. `size` is the most that its value can take."""

    key: str
    epoch: int
    version: int
    deleted: bool
    kv_time_us: int
    size: int


class Parent(NamedTuple):
    """What the next checkpoint of an agent may stand on."""

    id: UUID
    seq: int
    parent_id: UUID | None
    depth: int
    chain_bytes: int
    base_bytes: int
    epoch: int
    revision: int
    incarnation: str
    format: int


class NewCheckpoint(NamedTuple):
    """A checkpoint on its way; `metadata` as jsonb's text and the exact bytes beside it."""

    id: UUID
    agent_id: UUID
    seq: int
    parent_id: UUID | None
    depth: int
    chain_bytes: int
    base_bytes: int
    epoch: int
    revision: int
    incarnation: str
    cut_us: int
    label: str | None
    metadata: str | None
    raw: bytes | None
    keep: bool
    group_id: UUID | None
    changed: int
    removed: int
    size: int
    data_id: UUID
    format: int
    part_digests: bytes
    digest: bytes


class CheckpointRow(NamedTuple):
    """A checkpoint as it stands there."""

    id: UUID
    agent_id: UUID
    seq: int
    parent_id: UUID | None
    epoch: int
    revision: int
    cut_us: int
    label: str | None
    metadata: str | None
    raw: bytes | None
    keep: bool
    group_id: UUID | None
    changed: int
    removed: int
    size: int
    data_id: UUID
    format: int
    part_digests: bytes
    digest: bytes
    created_at: datetime


class Added(NamedTuple):
    """What became of an addition: `guarded` is false when the epoch is another one, or tombstones may be missed."""

    guarded: bool
    created_at: datetime | None


class Mention(NamedTuple):
    """A part that names a key."""

    checkpoint_id: UUID
    seq: int
    part: int
    digest: bytes
    data: bytes


class CheckpointTable:
    """What the engine asks of SQL about checkpoints."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def newer(self, agent_id: UUID, after: str, epoch: int, version: int, limit: int) -> list[NewerRow]:
        """The agent's rows above a version, in key order, tombstones included."""
        rows = await self.db.fetch(self.db.queries["checkpoint_rows"], agent_id, after, epoch, version, limit)
        return [NewerRow(*row) for row in rows]

    async def newest(self, agent_id: UUID) -> Parent | None:
        """The agent's last checkpoint."""
        row = await self.db.fetchrow(self.db.queries["checkpoint_newest"], agent_id)
        return None if row is None else Parent(*row)

    async def add(
        self,
        new: NewCheckpoint,
        parts: Sequence[bytes],
        first: int,
        parent_revision: int,
        blobs: Sequence[UUID],
        tx: Transaction | None = None,
    ) -> Added:
        """Add it with those of its parts that are not there yet, of which `first` is the number of the first one.
        Nothing is added when another one of this number or id is there, or its parent is gone."""
        query = self.db.queries["checkpoint_add"]
        row = await (tx or self.db).fetchrow(query, *new, list(parts), parent_revision, first, list(blobs))
        assert row is not None
        return Added(bool(row[0]), row[1])

    async def put_parts(self, data_id: UUID, first: int, parts: Sequence[bytes]) -> None:
        """Parts of a checkpoint that is not there yet."""
        await self.db.execute(self.db.queries["checkpoint_put_parts"], data_id, first, list(parts))

    async def drop_parts(self, data_id: UUID) -> None:
        """Forget parts that no checkpoint refers to."""
        await self.db.execute(self.db.queries["checkpoint_drop_parts"], data_id)

    async def rebase(self, before: CheckpointRow, base: CheckpointRow, blobs: Sequence[UUID]) -> bool:
        """A delta becomes a base; false when it is not what it was."""
        found = await self.db.fetchval(
            self.db.queries["checkpoint_rebase"], base.id, before.data_id, base.data_id, base.size, base.changed,
            base.format, base.part_digests, base.digest, list(blobs),
        )  # fmt: skip
        return found is not None

    async def surplus(self, last: int, hours: int, days: int, limit: int) -> list[tuple[UUID, list[UUID]]]:
        """By agent what retention has no reason to keep."""
        rows = await self.db.fetch(self.db.queries["checkpoint_surplus"], last, hours, days, limit)
        return [(row[0], row[1]) for row in rows]

    async def standing_on(self, ids: Sequence[UUID]) -> list[CheckpointRow]:
        """Others that stand on one of these."""
        rows = await self.db.fetch(self.db.queries["checkpoint_standing_on"], list(ids))
        return [CheckpointRow(*row) for row in rows]

    async def remove(self, agent_id: UUID, ids: Sequence[UUID]) -> int:
        """Remove those of these that nobody needs; how many."""
        return int(await self.db.fetchval(self.db.queries["checkpoint_remove"], agent_id, list(ids)))

    async def orphans(self, before: UUID) -> list[UUID]:
        """Parts that were begun before this UUIDv7 was made, and whose checkpoint never came."""
        return [row[0] for row in await self.db.fetch(self.db.queries["checkpoint_orphans"], before)]

    async def find(self, checkpoint_id: UUID, agent_id: UUID) -> CheckpointRow | None:
        """A checkpoint of this agent."""
        row = await self.db.fetchrow(self.db.queries["checkpoint_find"], checkpoint_id, agent_id)
        return None if row is None else CheckpointRow(*row)

    async def page(self, agent_id: UUID, below: int, limit: int) -> list[CheckpointRow]:
        """The agent's checkpoints below a number, the newest first."""
        rows = await self.db.fetch(self.db.queries["checkpoint_list"], agent_id, below, limit)
        return [CheckpointRow(*row) for row in rows]

    async def chain(self, agent_id: UUID, seq: int) -> list[CheckpointRow]:
        """A checkpoint and those that it stands on, the newest first; [] when there is none of this number."""
        rows = await self.db.fetch(self.db.queries["checkpoint_chain"], agent_id, seq)
        return [CheckpointRow(*row) for row in rows]

    async def parts(
        self, wanted: Sequence[tuple[UUID, int]], containing: bytes | None
    ) -> dict[tuple[UUID, int], bytes | None]:
        """Those of these parts that are there; None for one that does not contain these bytes."""
        ids, numbers = [one[0] for one in wanted], [one[1] for one in wanted]
        rows = await self.db.fetch(self.db.queries["checkpoint_parts"], ids, numbers, containing)
        return {(row[0], row[1]): row[2] for row in rows}

    async def mentions(self, agent_id: UUID, text: bytes, after: tuple[int, int], limit: int) -> list[Mention]:
        """The agent's parts behind a place that contain these bytes."""
        rows = await self.db.fetch(self.db.queries["checkpoint_mentions"], agent_id, text, *after, limit)
        return [Mention(*row) for row in rows]
