"""`messages.log`: what was said, in one order, in partitions of time.

A message's place is its `ts`, in µs since 1970, given by PostgreSQL under a lock that every sender keeps until his
commit is over: whoever sees a message sees every one with an earlier place, and none appears there later. So a reader
goes on after the last place that it saw, and misses none.
"""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from cenote.errors import OutcomeUnknownError, UnavailableError
from cenote.sql.errors import FOREIGN, TIER
from cenote.sql.locks import advisory_key
from cenote.sql.pool import Database
from cenote.sql.transaction import Isolation, Transaction, transact

LAST_US = 2**53  # beyond every place: the year 2255
_LIMITS = "SET LOCAL statement_timeout = 0"  # of a move out of the net; every lock is still waited for briefly


class NewRow(NamedTuple):
    """A message on its way; names SQL-escaped, body and metadata as jsonb's text and the exact bytes beside it."""

    message_id: UUID
    size: int
    reply_to: UUID | None
    sender: str
    recipient: str
    conversation: str | None
    body: str | None
    raw: bytes | None
    metadata: str | None
    metadata_raw: bytes | None


class MessageRow(NamedTuple):
    """A message as it stands in the log. `size`: bytes of body and metadata. `dropped_us`: up to
    there messages were dropped for their age; None: none was."""

    message_id: UUID
    ts_us: int
    reply_to: UUID | None
    sender: str
    recipient: str
    conversation: str | None
    body: str | None
    raw: bytes | None
    metadata: str | None
    metadata_raw: bytes | None
    size: int
    dropped_us: int | None


class Select(NamedTuple):
    """Which messages: None takes all. SQL-escaped."""

    conversation: str | None = None
    recipient: str | None = None
    sender: str | None = None

    @property
    def query(self) -> str:
        """The query that goes by the narrowest index."""
        if self.conversation is not None:
            return "messages_of_conversation"
        if self.recipient is not None:
            return "messages_to_recipient"
        return "messages_all" if self.sender is None else "messages_from_sender"


class Partitions(NamedTuple):
    """How the log is divided. `at_us`: where the next message will lie, at the earliest; `net_us`: the first message
    that lies in no partition of its own."""

    at_us: int
    net_us: int | None
    bounds: Sequence[tuple[int, int]]

    def covered_us(self) -> int:
        """Until when messages will find a partition, from `at_us` on."""
        until = self.at_us
        for since, end in self.bounds:
            if since <= until < end:
                until = end
        return until


class MessageTable:
    """What the engine asks of SQL about messages."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self._turn = advisory_key(db.names, "messages")
        self._makers = advisory_key(db.names, "message partitions")

    async def send(self, rows: Sequence[NewRow], *, check: bool, timeout_ms: float) -> dict[UUID, int]:
        """Take messages; the places of those that were not there before. check: whether any may be there.

        Raises:
            OutcomeUnknownError: they may have been taken.
            UnavailableError: they have not.
        """
        async with self.db.lent(timeout_ms=timeout_ms) as con:
            try:
                found = await con.fetch(self.db.queries["send_messages"], *self._arguments(rows, check=check))
            except FOREIGN as error:
                mapped = await self.db.mapped(error)
                if isinstance(mapped, UnavailableError):
                    raise OutcomeUnknownError(
                        f"the answer to a send was lost, it may or may not have happened: {mapped.args[0]}", tier=TIER,
                        hint="send it again with the same message_id",
                    ) from error  # fmt: skip
                raise mapped from error
        return {row[0]: row[1] for row in found}

    async def send_in(self, tx: Transaction, rows: Sequence[NewRow]) -> dict[UUID, int]:
        """The same within a transaction, which holds everybody else up until it is over."""
        found = await tx.fetch(self.db.queries["send_messages"], *self._arguments(rows, check=True))
        return {row[0]: row[1] for row in found}

    async def by_id(self, ids: Sequence[UUID], tx: Transaction | None = None) -> dict[UUID, MessageRow]:
        """Those of these that are there."""
        rows = await (tx or self.db).fetch(self.db.queries["messages_by_id"], ids)
        return {row[0]: MessageRow(*row) for row in rows}

    async def page(self, which: Select, after_us: int, limit: int, bytes_max: int, *, back: bool) -> list[MessageRow]:
        """Messages after a place, or before it, the newest first. One at least, however large, if there is one."""
        query = self.db.queries[which.query + ("_back" if back else "")]
        rows = await self.db.fetch(query, after_us, limit, bytes_max, *which)
        return [MessageRow(*row) for row in rows]

    async def words(
        self, which: Select, text: str, before_us: int, limit: int, *, slice_rows: int | None
    ) -> tuple[list[MessageRow], int | None]:
        """Messages with these words, the newest first, and the place before which the look goes on; None: it is over.
        slice_rows: look at so many messages at most."""
        query = self.db.queries["search_messages" if slice_rows is None else "search_messages_slice"]
        ends = () if slice_rows is None else (slice_rows,)
        rows = await self.db.fetch(query, before_us, limit, text, *which, *ends)
        found = [MessageRow(*row[:12]) for row in rows if row[0] is not None]
        if len(found) == limit:
            return found, found[-1].ts_us
        return found, rows[0]["seen_us"] if rows and slice_rows is not None else None

    async def newest_us(self) -> int:
        """The place of the newest message that can be seen: each that is still to come has a later one."""
        return int(await self.db.fetchval(self.db.queries["newest_message"]))

    async def dropped_us(self) -> int:
        """Up to there messages were dropped for their age; 0: none was."""
        return int(await self.db.fetchval(self.db.queries["messages_horizon"]) or 0)

    async def forget(self, conversation: str, limit: int) -> int:
        """Remove so many messages of a conversation, the oldest; how many were removed."""
        told = await self.db.execute(self.db.queries["forget_conversation"], conversation, limit)
        return int(told.rpartition(" ")[2])

    async def delete(self, message_id: UUID) -> None:
        """Remove one, if it is there."""
        await self.db.execute(self.db.queries["delete_message"], message_id)

    # --- partitions -----------------------------------------------------------------------------------------

    async def partitions(self) -> Partitions:
        """How the log is divided now."""
        row = await self.db.fetchrow(self.db.queries["message_partitions"])
        assert row is not None
        bounds = list(zip(row["since_us"], row["until_us"], strict=True))
        return Partitions(max(row["now_us"], row["position_us"]), row["net_us"], bounds)

    async def make_partition(self, at_us: int, seconds: int, *, search: bool) -> int:
        """Make the partition that holds a time, unless there is one; its end. What lies in the net moves into it."""

        async def make(tx: Transaction) -> int:
            await tx.execute(_LIMITS)
            await tx.fetchval(self.db.queries["lock_maker"], self._makers)
            return int(await tx.fetchval(self.db.queries["make_message_partition"], at_us, seconds, search))

        return await transact(self.db, make, isolation=Isolation.READ_COMMITTED)

    async def drop_partitions(self, age_s: float) -> int:
        """Drop partitions that ended so long ago; how many."""

        async def drop(tx: Transaction) -> int:
            await tx.execute(_LIMITS)
            await tx.fetchval(self.db.queries["lock_maker"], self._makers)
            return int(await tx.fetchval(self.db.queries["drop_message_partitions"], age_s))

        return await transact(self.db, drop, isolation=Isolation.READ_COMMITTED)

    def _arguments(self, rows: Sequence[NewRow], *, check: bool) -> tuple[object, ...]:
        return (self._turn, check, *map(list, zip(*rows, strict=True)))
