"""Messages: what was said, by whom, to whom, in one order for everybody.

PostgreSQL is authoritative, and gives each message its place (`sql/messages.py`); NATS only wakes those who wait. Of
the verbs of a `Repository`, `send` is save, `get` find, `read` list and `delete` delete; what was said is not updated.
"""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import cached_property
from types import NoneType
from typing import Final, TypeVar
from uuid import UUID

from cenote import limits
from cenote.engine.machines import Machines
from cenote.errors import (
    AlreadyExistsError,
    NotFoundError,
    OutcomeUnknownError,
    RejectedError,
    TransactionError,
    UnavailableError,
)
from cenote.kv.deadline import patient
from cenote.model import key as keys
from cenote.model.page import Cursors, Page, page_limit
from cenote.repositories.messages_entity import Message, NewMessage, identity, message, name, outgoing, same
from cenote.repositories.messages_outbox import Outbox
from cenote.repositories.messages_tail import Tail
from cenote.repositories.messages_upkeep import Upkeep
from cenote.retry import Backoff
from cenote.sql.messages import LAST_US, MessageRow, MessageTable, NewRow, Select
from cenote.sql.transaction import Transaction

T = TypeVar("T")
Who = str | UUID

_NO_MESSAGE: Final = "there is no such message"
_NOT_IN_SQL: Final = re.compile("[\x00\ud800-\udfff]")


class Messages:
    """What agents said to each other."""

    def __init__(self, machines: Machines) -> None:
        self._core = machines.core
        self._table = MessageTable(machines.core.db)
        self._outbox = Outbox(machines.core, self._table, Upkeep(machines.core, self._table))

    async def send(
        self,
        body: object,
        *,
        sender: Who,
        to: Who,
        conversation: Who | None = None,
        message_id: UUID | None = None,
        reply_to: UUID | None = None,
        metadata: Mapping[str, object] | None = None,
        tx: Transaction | None = None,
    ) -> Message:
        """Say something; on return PostgreSQL has it, and those who subscribe are told.

        Args:
            body: any value that an agent's key could hold, up to 1 MiB encoded.
            sender, to: names of 1 to 200 characters, or UUIDs; no agent needs to be registered.
            conversation: likewise.
            message_id: of a message that may have been sent already: then this is the stored one, and nothing is sent.
            reply_to: the id of the message that it answers.
            metadata: a mapping with string keys, up to 64 KiB encoded.
            tx: send it with this transaction: it is there when that has been committed, and takes its place then.

        Raises:
            RejectedError: a field, with its limit; nothing was sent.
            AlreadyExistsError: another message has this id.
            OutcomeUnknownError: the answer was lost; send it again under the same `message_id`.
            UnavailableError: PostgreSQL cannot be reached; nothing was sent.
        """
        given: NewMessage = {
            "body": body, "sender": sender, "to": to, "conversation": conversation, "message_id": message_id,
            "reply_to": reply_to, "metadata": metadata,
        }  # fmt: skip
        return (await self.send_many([given], tx=tx))[0]

    async def send_many(self, messages: Iterable[NewMessage], *, tx: Transaction | None = None) -> list[Message]:
        """Say several things at once, in the order given, all or none: at most 1,000 messages of 8 MiB together.

        Args:
            messages: mappings with the arguments of `send`.
            tx: as for `send`.

        Raises:
            As `send`, with the place of the message in the list.
        """
        given = list(messages)
        rows = self._rows(given)
        if not rows:
            return []
        if tx is not None:
            return self._within(tx, rows)
        check = any(one.get("message_id") is not None for one in given)
        places = await self._outbox.send(rows, check=check)
        known = [row.message_id for row in rows if row.message_id not in places]
        stored = await self._again(lambda: self._table.by_id(known)) if known else {}
        return [self._settled(row, places.get(row.message_id), stored) for row in rows]

    async def read(
        self,
        *,
        conversation: Who | None = None,
        to: Who | None = None,
        sender: Who | None = None,
        limit: int = 100,
        cursor: str | None = None,
        newest_first: bool = False,
    ) -> Page[Message]:
        """A page of what was said: of a conversation, to somebody, by somebody, of all three, or of everything.

        Pages follow each other without a gap and without repetition, however much is sent meanwhile: what is sent later
        has a later place. A page ends early where its bodies reach 8 MiB.

        Args:
            limit: 1 to 1,000 messages.
            cursor: `.next` of a page of the same list, or any message's `.position`, to go on after that one.
            newest_first: backwards in time.

        Raises:
            NotFoundError: there is no such page.
            RejectedError: an argument cannot be meant.
        """
        which = _select(conversation, to, sender)
        page_limit(limit)
        after_us = self._place(cursor, "read", which, newest_first)
        bytes_max = limits.MESSAGES_PAGE_BYTES_MAX
        rows = await self._again(
            lambda: self._table.page(which, after_us, limit + 1, bytes_max, back=newest_first),
        )
        more = len(rows) > limit or sum(row.size for row in rows) >= bytes_max
        return self._page(rows[:limit], more, "read", which, newest_first)

    async def get(self, message_id: UUID) -> Message:
        """One message. NotFoundError when there is none of this id."""
        wanted = identity(message_id, "message_id")
        if wanted is None:
            raise RejectedError("message_id: a UUID is needed")
        found = (await self._again(lambda: self._table.by_id([wanted]))).get(wanted)
        if found is None:
            raise NotFoundError(_NO_MESSAGE, tier="RELATIONAL_DB")
        return self._message(found)

    async def search(
        self,
        text: str,
        *,
        conversation: Who | None = None,
        to: Who | None = None,
        sender: Who | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> Page[Message]:
        """Messages with these words in the texts of their bodies, the newest first. Words are compared as they are
        written, but for their case; `"in this order"`, `or` and `-without` are understood.

        With `messages.search_index` an index finds them; else the log is read backwards until there are enough.

        Raises:
            As `read`.
        """
        which = _select(conversation, to, sender)
        words = _words(text)
        page_limit(limit)
        before_us: int | None = self._place(cursor, f"search {words}", which, back=True)
        slice_rows = None if self._core.config.messages.search_index else limits.MESSAGES_SLICE_ROWS
        rows: list[MessageRow] = []
        while before_us is not None and len(rows) < limit:
            found, before_us = await self._again(self._look(which, words, before_us, limit - len(rows), slice_rows))
            rows += found
        return self._page(rows, before_us is not None, f"search {words}", which, back=True)

    async def subscribe(
        self,
        *,
        conversation: Who | None = None,
        to: Who | None = None,
        sender: Who | None = None,
        since: str | int | None = None,
    ) -> AsyncGenerator[Message, None]:
        """Messages as they are sent: in order, at least once, through every failure of NATS and PostgreSQL.

        Args:
            conversation, to, sender: which; all of them must fit.
            since: the `.position` of the last message that was dealt with; 0: all that are kept; None: from now.

        Raises:
            ExpiredError: messages after `since` may have been dropped for their age. Never a silent gap.
            NotFoundError: `since` is no position of this store.
            UnavailableError: PostgreSQL cannot be reached to begin with; later the feed waits for it.
        """
        which = _select(conversation, to, sender)
        if type(since) not in (str, int, NoneType) or (since != 0 and isinstance(since, int)):
            raise RejectedError(f"since: {since!r} is no position; give a message's `.position`, 0 or None")
        after_us = self._position(since) if isinstance(since, str) else since
        async for row in Tail(self._core, self._table, which, after_us).rows():
            yield self._message(row)

    async def delete(self, message_id: UUID) -> None:
        """Remove a message; removing an absent one is fine. Sent again under its id, it is new."""
        wanted = identity(message_id, "message_id")
        if wanted is None:
            raise RejectedError("message_id: a UUID is needed")
        await self._again(lambda: self._table.delete(wanted))

    async def forget(self, conversation: Who) -> int:
        """Remove what was said in a conversation so far; how many messages that were."""
        wanted = keys.sql_key(name(conversation, "conversation"))
        removed = 0
        while True:
            count = await self._again(lambda: self._table.forget(wanted, limits.MESSAGES_FORGET_ROWS))
            removed += count
            if count < limits.MESSAGES_FORGET_ROWS:
                return removed

    # --- sending --------------------------------------------------------------------------------------------

    def _rows(self, given: Sequence[NewMessage]) -> list[NewRow]:
        if len(given) > limits.MESSAGES_BATCH_COUNT_MAX:
            raise RejectedError(f"messages: {len(given)} of them; up to {limits.MESSAGES_BATCH_COUNT_MAX} are taken")
        rows: list[NewRow] = []
        for number, one in enumerate(given):
            try:
                rows.append(outgoing(one))
            except RejectedError as error:
                if len(given) > 1:
                    error.args = (f"messages[{number}].{error.args[0]}",)
                raise
        if len({row.message_id for row in rows}) < len(rows):
            raise RejectedError("messages: two of them have the same message_id")
        size = sum(row.size for row in rows)
        if size > limits.MESSAGES_BATCH_BYTES_MAX:
            raise RejectedError(f"messages: {size} bytes; up to {limits.MESSAGES_BATCH_BYTES_MAX} are taken together")
        return rows

    def _within(self, tx: Transaction, rows: list[NewRow]) -> list[Message]:
        """Sending is what a transaction does last: from there to its commit all other senders wait."""

        async def work() -> None:
            places = await self._table.send_in(tx, rows)
            known = [row.message_id for row in rows if row.message_id not in places]
            stored = await self._table.by_id(known, tx) if known else {}
            for row in rows:
                self._settled(row, places.get(row.message_id), stored)

        tx.before_commit.append(work)
        tx.after_commit.append(lambda: self._outbox.tell(rows))
        return [message(row, self._cursors, None) for row in rows]

    def _settled(self, row: NewRow, place: int | None, stored: Mapping[UUID, MessageRow]) -> Message:
        sent = message(row, self._cursors, place)
        if place is not None:
            return sent
        if row.message_id not in stored:
            raise OutcomeUnknownError(
                f"message_id {row.message_id}: it was there already, and has been removed meanwhile",
                tier="RELATIONAL_DB",
            )
        found = self._message(stored[row.message_id])
        if not same(sent, found):
            raise AlreadyExistsError(
                f"message_id {row.message_id}: another message has it", tier="RELATIONAL_DB",
                hint="an id names one message: send this one under an id of its own",
            )  # fmt: skip
        return found

    # --- reading --------------------------------------------------------------------------------------------

    @cached_property
    def _cursors(self) -> Cursors:
        return Cursors(self._core.epochs.store_id, "messages")

    def _message(self, row: MessageRow) -> Message:
        return message(row, self._cursors, row.ts_us)

    def _page(self, rows: list[MessageRow], more: bool, kind: str, which: Select, back: bool) -> Page[Message]:
        following = self._cursors.write(rows[-1].ts_us, kind, back, *which) if more and rows else None
        return Page([self._message(row) for row in rows], following)

    def _place(self, cursor: str | None, kind: str, which: Select, back: bool) -> int:
        """Where a page begins. NotFoundError for a cursor of another list."""
        if cursor is None:
            return LAST_US if back else 0
        return self._position(cursor, kind, back, *which)

    def _position(self, cursor: str, *of_page: object) -> int:
        values = self._cursors.read(cursor)
        if len(values) > 1 and values[1:] != list(of_page):
            self._cursors.read("")  # raises what a forged one does
        return int(values[0])

    def _look(
        self, which: Select, words: str, before_us: int, limit: int, slice_rows: int | None
    ) -> Callable[[], Awaitable[tuple[list[MessageRow], int | None]]]:
        return lambda: self._table.words(which, words, before_us, limit, slice_rows=slice_rows)

    async def _again(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer to a question that may be asked again."""
        config = self._core.config.retry
        backoff = Backoff(patient(config), config.deadline_ms)
        while True:
            try:
                return await ask()
            except (UnavailableError, TransactionError) as error:
                await backoff.pause(error)


def _select(conversation: Who | None, to: Who | None, sender: Who | None) -> Select:
    given = {"conversation": conversation, "to": to, "sender": sender}
    return Select(*(None if one is None else keys.sql_key(name(one, what)) for what, one in given.items()))


def _words(text: object) -> str:
    """What PostgreSQL can look for: U+FFFD stands for what its text cannot carry, here as in the log."""
    if not isinstance(text, str):
        raise RejectedError(f"text: a str is needed, not {type(text).__name__}")
    if not 0 < len(text) <= limits.MESSAGE_WORDS_CHARS_MAX:
        raise RejectedError(f"text: {len(text)} characters; 1 to {limits.MESSAGE_WORDS_CHARS_MAX} are allowed")
    return _NOT_IN_SQL.sub("\ufffd", text)
