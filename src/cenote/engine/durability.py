"""Receipts, and who waits for SQL (I1, I8; flow rule 1 with F-time and F-conn).

A receipt is durable when a committed row of its key is at least as new, and only such rows count whose KV server time
is not before the write was sent: a row of the stream's life before this one is not about this write. The consumer's
ack floor proves nothing: it passes messages that were superseded before anyone committed them.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple
from uuid import UUID

from cenote.engine.entries import Target
from cenote.errors import CenoteError, OutcomeUnknownError
from cenote.model.entry import Version
from cenote.sql.rows import Row
from cenote.sql.state import StateTable

log = logging.getLogger("cenote.engine")

_POLL_MS = 10
_POLL_MS_MAX = 100
_POLL_KEYS_MAX = 1_000


class _Waiter(NamedTuple):
    revision: int
    since_us: int
    future: asyncio.Future[None]


class Durability:
    """Everyone in this process who waits until a write of theirs is in SQL."""

    def __init__(self, table: StateTable, newest_epoch: Callable[[], int]) -> None:
        self._table = table
        self._newest_epoch = newest_epoch
        self._waiting: dict[tuple[UUID, str], list[_Waiter]] = {}
        self._poll: asyncio.Task[None] | None = None
        self.hurry: Callable[[], None] | None = None
        """Set by a flusher in this process: somebody waits, so do not sit out the flush interval."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def wait(self, target: Target, revision: int, since_us: int) -> asyncio.Future[None]:
        """A future that completes once a row of `target` at least as new as `revision`, and whose KV time is not before
        `since_us`, is committed; it fails with OutcomeUnknownError when the connection ends before."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (target.agent.id, target.row_key)
        self._waiting.setdefault(place, []).append(_Waiter(revision, since_us, future))
        future.add_done_callback(lambda _: self._leave(place))
        if self.hurry is not None:
            self.hurry()
        if self._poll is None or self._poll.done():
            self._poll = asyncio.create_task(self._ask_sql(), name="cenote-durability")
        return future

    def committed(self, rows: Iterable[Row]) -> None:
        """A flusher of this process has committed these rows, or found newer ones there."""
        if not self._waiting:
            return
        for row in rows:
            if (row.agent_id, row.key) in self._waiting:
                self._tell((row.agent_id, row.key), Version(row.epoch, row.version), row.kv_time_us)

    def disconnected(self) -> None:
        """F-conn: a sequence dies with its connection, so nobody can say any more what a waiter waits for."""
        for waiters in list(self._waiting.values()):
            for waiter in waiters:
                if not waiter.future.done():
                    waiter.future.set_exception(
                        OutcomeUnknownError(
                            "the connection to NATS was replaced while waiting for PostgreSQL",
                            hint="read the key, or call store.flush()",
                        )
                    )

    async def close(self) -> None:
        """Stop polling; whoever still waits gets OutcomeUnknownError."""
        self.disconnected()
        if self._poll is not None:
            self._poll.cancel()
            await asyncio.gather(self._poll, return_exceptions=True)

    def _leave(self, place: tuple[UUID, str]) -> None:
        waiters = [waiter for waiter in self._waiting.get(place, ()) if not waiter.future.done()]
        if waiters:
            self._waiting[place] = waiters
        else:
            self._waiting.pop(place, None)

    def _tell(self, place: tuple[UUID, str], version: Version, kv_time_us: int) -> None:
        # F-time: the receipt's epoch is the newest one now, not the one at the ack, which carries no time.
        # A row of a later epoch than this process knows yet says nothing: the next probe tells which epoch it is.
        epoch = self._newest_epoch()
        if version.epoch > epoch:
            return
        for waiter in self._waiting.get(place, ()):
            if version >= (epoch, waiter.revision) and kv_time_us >= waiter.since_us and not waiter.future.done():
                waiter.future.set_result(None)

    async def _ask_sql(self) -> None:
        """For rows that another process commits: ask SQL, seldom when this process has an active flusher itself."""
        pause_ms = _POLL_MS
        while self._waiting:
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * 2, _POLL_MS_MAX)
            places = list(self._waiting)[:_POLL_KEYS_MAX]
            try:
                versions = await self._table.versions(places)
            except CenoteError as error:
                log.debug("cannot ask PostgreSQL what is durable: %s", error)
                continue  # the waiters' own deadlines decide how long that may last
            for place, (epoch, revision, kv_time_us) in versions.items():
                self._tell(place, Version(epoch, revision), kv_time_us)
