"""The way of messages to PostgreSQL, and the word to those who wait for them.

Whoever sends holds up all other senders of the store for as long as his commit takes. So of one process one statement
is on its way at a time, and whatever is sent meanwhile goes together in the next: with many senders a commit carries
many messages.

A statement whose answer was lost is sent again with a look at what is there: a message arrives once, or its sender is
told that nobody knows (`OutcomeUnknownError`).
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from uuid import UUID

from cenote import limits
from cenote.engine.core import Core
from cenote.errors import (
    BackpressureError,
    CenoteError,
    OutcomeUnknownError,
    SetupError,
    TransactionError,
    UnavailableError,
)
from cenote.kv.deadline import patient
from cenote.repositories.messages_upkeep import Upkeep
from cenote.retry import Backoff
from cenote.sql.messages import MessageTable, NewRow, Select

Places = dict[UUID, int]


@dataclass(slots=True)
class _Parcel:
    """The messages of one call: all or none of them are taken."""

    rows: Sequence[NewRow]
    check: bool
    bytes: int
    taken: asyncio.Future[Places]


class Outbox:
    """What one process sends."""

    def __init__(self, core: Core, table: MessageTable, upkeep: Upkeep) -> None:
        self._core = core
        self._table = table
        self._upkeep = upkeep
        self._waiting: deque[_Parcel] = deque()
        self._bytes = 0
        self._worker: asyncio.Task[None] | None = None
        self._closed = False
        core.on_close.append(self._close)

    async def send(self, rows: Sequence[NewRow], *, check: bool) -> Places:
        """Have messages taken, all or none; the places of those that were not there before.

        Raises:
            OutcomeUnknownError: an answer was lost, and what came of it could not be learnt in time.
            BackpressureError: too much waits already; nothing was taken.
            UnavailableError: PostgreSQL cannot be reached; nothing was taken.
        """
        if self._closed:
            raise SetupError("this store is closed")
        size = sum(row.size for row in rows)
        if self._bytes + size > limits.MESSAGES_WAITING_BYTES_MAX:
            raise BackpressureError("too many messages wait to be sent; nothing was taken", hint="await what you send")
        parcel = _Parcel(rows, check, size, asyncio.get_running_loop().create_future())
        self._waiting.append(parcel)
        self._bytes += size
        if self._worker is None:
            self._worker = asyncio.create_task(self._work(), name="cenote-messages")
        return await parcel.taken

    def tell(self, rows: Iterable[NewRow]) -> None:
        """Wake whoever waits for one of these, which are committed. At most once: who was not told looks by himself."""
        for one in {(row.conversation, row.recipient, row.sender) for row in rows}:
            try:
                self._core.link.send(subject(self._core.names.prefix, Select(*one), "-"), b"", b"")
            except CenoteError:
                return

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._deliver(self._batch())
        finally:
            self._worker = None
            self._fail(self._waiting, SetupError("this store is closed"))

    def _batch(self) -> list[_Parcel]:
        """What goes together: so many, no two messages of one id, and nobody who does not wait any more."""
        batch: list[_Parcel] = []
        ids: set[UUID] = set()
        count = size = 0
        while self._waiting:
            parcel = self._waiting[0]
            own = {row.message_id for row in parcel.rows}
            count, size = count + len(own), size + parcel.bytes
            full = count > limits.MESSAGES_BATCH_COUNT_MAX or size > limits.MESSAGES_BATCH_BYTES_MAX
            if batch and (full or ids & own):
                break
            self._waiting.popleft()
            self._bytes -= parcel.bytes
            if parcel.taken.done():
                continue
            ids |= own
            batch.append(parcel)
        return batch

    async def _deliver(self, batch: list[_Parcel]) -> None:
        if not batch:
            return
        try:
            places = await self._taken([row for parcel in batch for row in parcel.rows], any(p.check for p in batch))
        except CenoteError as error:
            if len(batch) > 1 and not isinstance(error, UnavailableError | OutcomeUnknownError | TransactionError):
                for parcel in batch:  # a refusal is for one of them: the others go without it
                    await self._deliver([parcel])
            else:
                self._fail(batch, error)
            return
        except BaseException:
            self._fail(batch, OutcomeUnknownError("the store was closed while messages were on their way"))
            raise
        for parcel in batch:
            if not parcel.taken.done():
                own = {row.message_id for row in parcel.rows}
                parcel.taken.set_result({one: places[one] for one in own if one in places})

    async def _taken(self, rows: Sequence[NewRow], check: bool) -> Places:
        config = self._core.config
        backoff = Backoff(patient(config.retry), config.retry.deadline_ms)
        await self._upkeep.ready()
        doubt: OutcomeUnknownError | None = None
        while True:
            try:
                places = await self._table.send(rows, check=check or doubt is not None, timeout_ms=backoff.left_ms)
                break
            except OutcomeUnknownError as error:
                doubt = error
            except (UnavailableError, TransactionError) as error:
                await self._pause(backoff, error, doubt)
                continue
            await self._pause(backoff, doubt, doubt)
        self._upkeep.seen(max(places.values(), default=0))
        self.tell(rows)
        return places

    async def _pause(self, backoff: Backoff, error: CenoteError, doubt: CenoteError | None) -> None:
        try:
            await backoff.pause(error)
        except CenoteError:
            if doubt is None or doubt is error:
                raise
            raise doubt from error

    def _fail(self, parcels: Iterable[_Parcel], error: CenoteError) -> None:
        for parcel in parcels:
            if not parcel.taken.done():
                parcel.taken.set_exception(error)

    def _close(self) -> None:
        self._closed = True
        if self._worker is not None:
            self._worker.cancel()


def subject(prefix: str, which: Select, absent: str = "*") -> str:
    """What is published for a message, and, with wildcards for what may be anything, what is listened to."""
    return ".".join([f"msgw.{prefix}messages", *(absent if one is None else _token(one) for one in which)])


def _token(text: str) -> str:
    return blake2b(text.encode(), digest_size=9).hexdigest()
