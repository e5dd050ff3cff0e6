"""`agents.epochs` and `agents.flushers`: which life of the stream is flushed, and how far (flow rules 3, 4,
8, 19).

The newest epoch is the one row with an incarnation. Whoever ends it, or gives it another incarnation,
updates that
row: a flush in progress is waited for, a flush that waits sees the change.
"""

from typing import Final
from uuid import UUID, uuid4

from cenote.sql.locks import advisory_key
from cenote.sql.pool import Database
from cenote.sql.rows import EpochRow, FlusherRow, HighWater, NewEpoch
from cenote.sql.transaction import Isolation, Transaction, transact

_RESTAMP_MS: Final = 600_000  # it reads the whole table


class EpochTable:
    """Epochs, incarnations and heartbeats."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def epochs(self) -> list[EpochRow]:
        """All epochs, oldest first; only the last has an incarnation."""
        return [EpochRow(*row) for row in await self.db.fetch(self.db.queries["epochs"])]

    async def insert_epoch(self, seen: tuple[int, str] | None, new: NewEpoch) -> bool:
        """Begin the epoch after `seen` (epoch, incarnation), or the first one (None); compare-and-set.

        Rows of the ended epoch that were flushed from `new.from_us` on belong to the new one and are
        re-stamped in the same transaction, so that no crash can leave them behind (rule 4).

        Returns:
            False when the newest epoch is another one by now: read again.
        """

        async def change(tx: Transaction) -> bool:
            await self._lock(tx)
            return await self._insert(tx, seen, new)

        return await transact(self.db, change, isolation=Isolation.READ_COMMITTED)

    async def set_incarnation(self, epoch: int, seen: str, new: str) -> bool:
        """Give the newest epoch another incarnation; False when it has not `seen` any more, or is over."""
        return await self.db.execute(self.db.queries["set_incarnation"], epoch, seen, new) == "UPDATE 1"

    async def settle_epoch(
        self, *, stream_created: str, created_us: int, store_id: str | None, alive_s: float, own_flusher: str
    ) -> list[EpochRow]:
        """All epochs, after the first has begun for an empty database, or a further one for a recreated
        stream.

        None begins while the stream is another store's, or while a flusher other than `own_flusher` has
        committed within `alive_s`: then the last row's `stream_created` is not the one given.
        """

        async def settle(tx: Transaction) -> None:
            await self._lock(tx)
            known = [EpochRow(*row) for row in await tx.fetch(self.db.queries["epochs"])]
            newest = known[-1] if known else None
            if newest is not None and newest.stream_created == stream_created:
                return
            if newest is not None:
                foreign = store_id is not None and UUID(store_id) != UUID(newest.store_id)
                if foreign or await tx.fetchval(self.db.queries["flusher_alive"], alive_s, own_flusher):
                    return
            owner = newest.store_id if newest else store_id or str(uuid4())
            reason = "the stream was recreated" if newest else "the first"
            seen = None if newest is None else (newest.epoch, newest.incarnation or "")
            new = NewEpoch(created_us, owner, stream_created, "", "", reason)
            began = await self._insert(tx, seen, new)
            assert began, "the advisory lock is held by all who begin an epoch"

        await transact(self.db, settle, isolation=Isolation.READ_COMMITTED)
        return await self.epochs()

    async def heartbeats(self) -> list[FlusherRow]:
        """All flushers that ever committed, the latest first."""
        return [FlusherRow(*row) for row in await self.db.fetch(self.db.queries["heartbeats"])]

    async def high_water(self, epoch: int) -> HighWater | None:
        """How far the epoch has been flushed; None if not at all, or if its flushers have gone on to
        another."""
        row = await self.db.fetchrow(self.db.queries["high_water"], epoch)
        return None if row is None or row[0] is None else HighWater(*row)

    async def _lock(self, tx: Transaction) -> None:
        await tx.execute("SELECT pg_advisory_xact_lock($1)", advisory_key(self.db.names, "epochs"))

    async def _insert(self, tx: Transaction, seen: tuple[int, str] | None, new: NewEpoch) -> bool:
        queries = self.db.queries
        if seen is None:
            return await tx.execute(queries["first_epoch"], *new) == "INSERT 0 1"
        if await tx.execute(queries["end_epoch"], *seen) != "UPDATE 1":
            return False
        await tx.execute(queries["next_epoch"], seen[0] + 1, *new)
        await tx.execute("SET LOCAL statement_timeout = 0")
        await tx.execute(queries["restamp"], seen[0], seen[0] + 1, new.from_us, timeout_ms=_RESTAMP_MS)
        return True
