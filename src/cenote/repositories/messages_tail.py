"""A live tail of the log: what was said after a place, in order, at least once, with no silent gap.

SQL is what is read; a word over NATS only wakes the reader, and where none comes he looks by himself. What retention
has dropped before it was read ends the tail with an error.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from cenote import limits
from cenote.engine.core import Core
from cenote.errors import ExpiredError, SetupError, TransactionError, UnavailableError
from cenote.repositories.messages_outbox import subject
from cenote.sql.messages import MessageRow, MessageTable, Select

log = logging.getLogger("cenote.messages")

_AWAY_S: Final = 1.0
_PAGE: Final = 500
_dice = random.Random()  # its own: a program that seeds the global one must get what it expects


class _Look(NamedTuple):
    """One look at the log: what was found, up to where nothing else can be, and how long to wait if it was nothing."""

    rows: list[MessageRow]
    seen_us: int
    pause_s: float


class Tail:
    """One feed; iterate `rows()` once. after_us: None: from now; 0: everything that is kept."""

    def __init__(self, core: Core, table: MessageTable, which: Select, after_us: int | None) -> None:
        self._core = core
        self._table = table
        self._which = which
        self._after_us = after_us
        self._stirred = asyncio.Event()
        self._closed = False
        self._quiet = False

    async def rows(self) -> AsyncIterator[MessageRow]:
        """Messages until the iterator or the store is closed; see `Messages.subscribe`."""
        with self._listening():
            after_us = await self._beginning()
            while not self._closed:
                self._stirred.clear()
                page = await self._page(after_us)
                for row in page.rows:
                    yield row
                    after_us = row.ts_us
                if not page.rows:
                    after_us = max(after_us, page.seen_us)
                    await self._pause(page.pause_s)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        core = self._core
        ear = core.link.subscribe(subject(core.names.prefix, self._which), lambda *_: self._stirred.set())
        core.link.on_connect.append(self._stirred.set)
        core.on_close.append(self._close)
        try:
            yield
        finally:
            core.on_close.remove(self._close)
            core.link.on_connect.remove(self._stirred.set)
            ear.close()

    async def _beginning(self) -> int:
        if self._after_us is None:
            return await self._table.newest_us()
        if self._after_us:
            self._check(self._after_us, await self._table.dropped_us())
        return self._after_us

    async def _page(self, after_us: int) -> _Look:
        """The next messages. ExpiredError when they cannot be told."""
        try:
            # A subscriber whom nobody wrote to for long does not stand where he was when his last message is dropped.
            seen_us = await self._table.newest_us() if self._quiet else 0
            rows = await self._table.page(self._which, after_us, _PAGE, limits.MESSAGES_PAGE_BYTES_MAX, back=False)
        except (UnavailableError, TransactionError) as error:
            log.debug("a subscriber waits for PostgreSQL: %s", error)
            return _Look([], 0, _AWAY_S)
        except SetupError:
            if self._closed:
                return _Look([], 0, 0)
            raise
        if rows and after_us:
            self._check(after_us, rows[0].dropped_us or 0)
        return _Look(rows, seen_us, self._core.config.messages.poll_ms / 1000)

    def _check(self, after_us: int, dropped_us: int) -> None:
        if after_us < dropped_us:
            raise ExpiredError(
                "messages after this position may have been dropped for their age", tier="RELATIONAL_DB",
                hint="subscribe with since=0 for all that is kept, or raise messages.retention_s",
            )  # fmt: skip

    async def _pause(self, seconds: float) -> None:
        self._quiet = False
        try:
            async with asyncio.timeout(seconds * (0.75 + _dice.random() / 2)):
                await self._stirred.wait()
        except TimeoutError:
            self._quiet = True

    def _close(self) -> None:
        self._closed = True
        self._stirred.set()
