"""`agents.epochs` and `agents.flushers`: which life of the stream is flushed, and how far (flow rules 3, 4,
8, 19).

The newest epoch is the one row with an incarnation. Whoever ends it, or gives it another incarnation,
updates that
row: a flush in progress is waited for, a flush that waits sees the change.
"""

from collections.abc import Sequence
from typing import Final
from uuid import UUID, uuid4

from cenote.sql.locks import advisory_key
from cenote.sql.pool import Database
from cenote.sql.rows import Claim, EpochRow, FlusherRow, HighWater, NewEpoch
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

    async def settle_epoch(self, claim: Claim) -> list[EpochRow]:
        """All epochs, after the first has begun for an empty database, or a further one for a recreated stream.

        None begins for a stream that may as well be another one (rule 8): then there are no rows, or the last one's
        `stream_created` is not the claim's.
        """

        async def settle(tx: Transaction) -> None:
            await self._lock(tx)
            known = [EpochRow(*row) for row in await tx.fetch(self.db.queries["epochs"])]
            newest = known[-1] if known else None
            home = await tx.fetchval(self.db.queries["home"])
            if refused(claim, newest, home):
                return
            if newest is None or newest.stream_created != claim.stream_created:
                await self._begin(tx, claim, newest)
            if claim.home != (home or ""):
                await tx.execute(self.db.queries["remember_home"], claim.home)

        await transact(self.db, settle, isolation=Isolation.READ_COMMITTED)
        return await self.epochs()

    async def _begin(self, tx: Transaction, claim: Claim, newest: EpochRow | None) -> None:
        owner = newest.store_id if newest else str(uuid4())
        reason = "the stream was recreated" if newest else "the first"
        seen = None if newest is None else (newest.epoch, newest.incarnation or "")
        new = NewEpoch(claim.created_us, owner, claim.stream_created, "", "", reason)
        began = await self._insert(tx, seen, new)
        assert began, "the advisory lock is held by all who begin an epoch"

    async def adopt(self, seen: EpochRow | None, new: NewEpoch, number: int, home: str) -> bool:
        """Begin epoch `number` of a store that is made of this database and a stream which was another store's. Rows
        stay in the epochs they were flushed under: their times are of another server's clock.

        Returns:
            False when the newest epoch is not `seen` any more.
        """

        async def change(tx: Transaction) -> bool:
            queries = self.db.queries
            await self._lock(tx)
            known = [EpochRow(*row) for row in await tx.fetch(queries["epochs"])]
            if (known[-1] if known else None) != seen:
                return False
            if seen is not None:
                await tx.execute(queries["end_epoch"], seen.epoch, seen.incarnation or "")
            await tx.execute(queries["next_epoch"], number, *new)
            await tx.execute(queries["remember_home"], home)
            return True

        return await transact(self.db, change, isolation=Isolation.READ_COMMITTED)

    async def known(self) -> tuple[EpochRow | None, str | None]:
        """The newest epoch and the data directory of its NATS, of a database that may lack even the tables."""
        if not await self.db.fetchval(self.db.queries["relation_exists"], f"{self.db.names.schema('agents')}.epochs"):
            return None, None
        rows = await self.epochs()
        return (rows[-1] if rows else None), await self.db.fetchval(self.db.queries["home"])

    async def heartbeats(self) -> list[FlusherRow]:
        """All flushers that ever committed, the latest first."""
        return [FlusherRow(*row) for row in await self.db.fetch(self.db.queries["heartbeats"])]

    async def high_water(self, epoch: int) -> HighWater | None:
        """How far the epoch has been flushed; None if not at all, or if its flushers have gone on to
        another."""
        row = await self.db.fetchrow(self.db.queries["high_water"], epoch)
        return None if row is None or row[0] is None else HighWater(*row)

    async def newest_flushed(self, epoch: int, sequence: int, before_us: int | None) -> int:
        """The newest KV time flushed in an epoch under `sequence` or above, earlier than `before_us`; 0: none."""

        async def ask(tx: Transaction) -> int:
            await tx.execute("SET LOCAL statement_timeout = 0")
            return int(await tx.fetchval(self.db.queries["newest_flushed"], epoch, sequence, before_us) or 0)

        return await transact(self.db, ask, isolation=Isolation.READ_COMMITTED, deadline_ms=_RESTAMP_MS)

    async def _lock(self, tx: Transaction) -> None:
        await tx.execute("SELECT pg_advisory_xact_lock($1)", advisory_key(self.db.names, "epochs"))

    async def reinstate(self, lost: Sequence[tuple[int, NewEpoch]]) -> None:
        """Give back epochs, oldest first, that the database lost when it went back in time (rule 5)."""

        async def change(tx: Transaction) -> None:
            await self._lock(tx)
            newest = EpochRow(*(await tx.fetch(self.db.queries["epochs"]))[-1])
            seen = (newest.epoch, newest.incarnation or "")
            for number, new in lost:
                if number > seen[0]:
                    given = await self._insert(tx, seen, new, number)
                    assert given, "the advisory lock is held by all who begin an epoch"
                    seen = (number, new.incarnation)

        await transact(self.db, change, isolation=Isolation.READ_COMMITTED)

    async def _insert(
        self, tx: Transaction, seen: tuple[int, str] | None, new: NewEpoch, number: int | None = None
    ) -> bool:
        queries = self.db.queries
        if seen is None:
            return await tx.execute(queries["first_epoch"], *new) == "INSERT 0 1"
        if await tx.execute(queries["end_epoch"], *seen) != "UPDATE 1":
            return False
        number = number or seen[0] + 1
        await tx.execute(queries["next_epoch"], number, *new)
        await tx.execute("SET LOCAL statement_timeout = 0")
        await tx.execute(queries["restamp"], seen[0], number, new.from_us, timeout_ms=_RESTAMP_MS)
        return True


def refused(claim: Claim, newest: EpochRow | None, home: str | None) -> bool:
    """Whether a stream without an epoch of its own must not have this database (rule 8).

    Created anew, or another NATS? Nothing in a new stream tells. It is the same NATS when its neighbours, the other two
    buckets, name this very store, or when it is the embedded one of the same data directory. Names that people give to
    servers prove nothing: two machines may well use the same ones.
    """
    if newest is None:
        return bool(claim.store_ids)
    if newest.stream_created == claim.stream_created:
        return False
    if claim.store_ids:
        return {UUID(store_id) for store_id in claim.store_ids} != {UUID(newest.store_id)}
    return claim.home == "" or claim.home != home
