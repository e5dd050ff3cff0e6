"""What may leave SQL again, and blobs from their first day to their last (I2, I15; flow rules 12, 20, 21).

Nothing here decides by itself: the engine's collector looks at KV first. What is upheld here: a tombstone goes only
together with a raised floor, of the very version that was looked at; a flush that runs is waited for, one that waits
reads the new floor; a blob goes only after it has been without a reference for a day.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from cenote.sql.pool import Database
from cenote.sql.rows import Guard
from cenote.sql.transaction import Isolation, Transaction, transact

BLOB_TIMEOUT_MS: Final = 60_000  # 64 MiB over a slow line
FIRST_ID: Final = UUID(int=0)


class Expired(NamedTuple):
    """A row whose time is over."""

    agent_id: UUID
    key: str
    epoch: int
    version: int


class Tombstone(NamedTuple):
    """A row that says "deleted"; `name` is the SQL-escaped name of its agent, None while it is not registered."""

    name: str | None
    agent_id: UUID
    key: str
    epoch: int
    version: int
    ripe: bool


class Blob(NamedTuple):
    """A blob and what SQL says of it; `epoch` and `version` are those of its key's row, None without one."""

    id: UUID
    name: str | None
    agent_id: UUID
    key: str
    referred: bool
    epoch: int | None
    version: int | None
    marked: bool
    ripe: bool


class GarbageTable:
    """Collection, and the blobs."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def expired(self, now_us: int, limit: int) -> list[Expired]:
        """Rows whose time is over at a KV server time, the longest gone first."""
        return [Expired(*row) for row in await self.db.fetch(self.db.queries["expired"], now_us, limit)]

    async def expire(self, rows: Sequence[Expired]) -> int:
        """Make them tombstones of the same version, unless written since; how many."""
        columns = [list(column) for column in zip(*rows, strict=True)]
        return _count(await self.db.execute(self.db.queries["expire"], *columns))

    async def tombstones(
        self, age_s: float, newest_epoch: int, floor: int, after: tuple[UUID, str], limit: int
    ) -> list[Tombstone]:
        """The next tombstones in key order, ripe or not."""
        query = self.db.queries["tombstones"]
        return [Tombstone(*row) for row in await self.db.fetch(query, age_s, newest_epoch, floor, *after, limit)]

    async def collect(self, guard: Guard, dead: Sequence[Tombstone]) -> int | None:
        """Raise the floor to the newest of them and delete them, unless written since; how many. None: the guard did
        not hold, and nothing happened."""
        newest = max((one.epoch, one.version) for one in dead)
        ordered = sorted(dead, key=lambda one: (one.agent_id.int, one.key))
        columns = [list(column) for column in zip(*(one[1:5] for one in ordered), strict=True)]
        found = await self.db.fetchval(self.db.queries["collect"], *guard, *newest, *columns)
        return None if found is None else int(found)

    async def blobs(self, age_s: float, after: UUID, limit: int) -> list[Blob]:
        """The next blobs by id."""
        return [Blob(*row) for row in await self.db.fetch(self.db.queries["blobs"], age_s, after, limit)]

    async def mark_blobs(self, ids: Sequence[UUID], *, unreferenced: bool) -> None:
        """Remember since when nothing refers to them, or that something does."""
        await self.db.execute(self.db.queries["mark_blobs"], list(ids), unreferenced)

    async def collect_blobs(self, guard: Guard, ids: Sequence[UUID], age_s: float) -> int:
        """Delete those that are still without a reference; how many. 0 when the guard did not hold."""

        async def collect(tx: Transaction) -> int:
            if await tx.execute(self.db.queries["begin_collection"], *guard) != "UPDATE 1":
                return 0
            return _count(await tx.execute(self.db.queries["collect_blobs"], list(ids), age_s))

        return await transact(self.db, collect, isolation=Isolation.READ_COMMITTED)

    async def forget_flushers(self, age_s: float) -> int:
        """Remove heartbeats of flushers that are long gone, but not the highest; how many."""
        return _count(await self.db.execute(self.db.queries["forget_flushers"], age_s))

    async def insert_blob(self, blob_id: UUID, body: bytes, agent_id: UUID, key: str) -> None:
        """Store the bytes of a large value of this key; nobody sees them before an entry refers to them."""
        query = self.db.queries["insert_blob"]
        await self.db.execute(query, blob_id, body, agent_id, key, timeout_ms=BLOB_TIMEOUT_MS)

    async def read_blob(self, blob_id: UUID) -> bytes | None:
        """The bytes of a large value."""
        body: bytes | None = await self.db.fetchval(self.db.queries["read_blob"], blob_id, timeout_ms=BLOB_TIMEOUT_MS)
        return body

    async def drop_blob(self, blob_id: UUID) -> None:
        """Delete a blob that no entry was ever published for."""
        await self.db.execute(self.db.queries["drop_blob"], blob_id)


def _count(told: str) -> int:
    return int(told.rpartition(" ")[2])
