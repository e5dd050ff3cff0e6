"""`agents.counters`: the newest total of each counter that reached SQL, and how far the stream was brought there.

Totals and position change in one commit, under a compare-and-set of the whole position: a flush that was built on
anything but what the database holds now writes nothing, so (epoch, version) of a row never goes down (I3).
"""

from collections.abc import Sequence
from typing import NamedTuple

from cenote.sql.pool import Database
from cenote.sql.transaction import Transaction


class CounterHead(NamedTuple):
    """Which life of the counter stream SQL has, at which start of the KV server, and up to which sequence."""

    epoch: int
    incarnation: str
    flushed: int


class CounterRow(NamedTuple):
    """One total; the name as PostgreSQL's text can hold it."""

    name: str
    value: int
    version: int
    kv_time_us: int


class GivenBack(NamedTuple):
    """A total that the stream has got back: where it stands now."""

    name: str
    version: int
    value: int


class CounterTable:
    """What the engine asks of SQL about counters."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def head(self) -> CounterHead | None:
        """None: nothing was ever counted."""
        row = await self.db.fetchrow(self.db.queries["counter_head"])
        return None if row is None else CounterHead(*row)

    async def flush(self, rows: Sequence[CounterRow], head: CounterHead, upto: int) -> bool:
        """Write totals, no two of one name, and the position they bring SQL to; False, and nothing is written, when
        SQL does not stand at `head` any more.

        Raises:
            UnavailableError: it may have been written; ask for the head.
        """
        ordered = sorted(rows)
        columns = (
            [row.name for row in ordered],
            [str(row.value) for row in ordered],
            [row.version for row in ordered],
            [row.kv_time_us for row in ordered],
        )
        return bool(await self.db.fetchval(self.db.queries["flush_counters"], *head, upto, *columns))

    async def hold(self, tx: Transaction) -> CounterHead:
        """Keep everybody else from flushing and mending until the transaction is over."""
        await tx.execute(self.db.queries["begin_counting"])
        row = await tx.fetchrow(self.db.queries["hold_counters"])
        assert row is not None, "begin_counting has made it"
        return CounterHead(*row)

    async def totals(self, tx: Transaction, epoch: int) -> list[tuple[str, int, int]]:
        """Name, total and version of every counter of an epoch."""
        rows = await tx.fetch(self.db.queries["counters_of_epoch"], epoch)
        return [(row[0], int(row[1]), row[2]) for row in rows]

    async def settle(
        self, tx: Transaction, before: CounterHead, head: CounterHead, given_back: Sequence[GivenBack], *, keep: bool
    ) -> None:
        """From now on `head` is where SQL stands. keep: the totals of the epoch before belong to this one, too."""
        if keep and head.epoch != before.epoch:
            await tx.execute(self.db.queries["restamp_counters"], before.epoch, head.epoch)
        if given_back:
            names, versions, values = zip(*given_back, strict=True)
            await tx.execute(self.db.queries["given_back"], head.epoch, names, versions, [str(one) for one in values])
        await tx.execute(self.db.queries["settle_counters"], *head)
