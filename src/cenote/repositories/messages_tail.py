"""A live tail of the log: what was said after a place, in order, at least once, with no silent gap.

SQL is what is read; a word over NATS only wakes the reader, and where none comes he looks by himself. What retention
has dropped before it was read ends the tail with an error.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

from cenote import limits
from cenote.engine.core import Core
from cenote.errors import ExpiredError, UnavailableError
from cenote.repositories.messages_outbox import subject
from cenote.sql.messages import MessageRow, MessageTable, Select

log = logging.getLogger("cenote.messages")

_AWAY_S: Final = 1.0
_PAGE: Final = 500
_dice = random.Random()  # its own: a program that seeds the global one must get what it expects


class Tail:
    """One feed; iterate `rows()` once. after_us: None: from now; 0: everything that is kept."""

    def __init__(self, core: Core, table: MessageTable, which: Select, after_us: int | None) -> None:
        self._core = core
        self._table = table
        self._which = which
        self._after_us = after_us
        self._stirred = asyncio.Event()
        self._closed = False

    async def rows(self) -> AsyncIterator[MessageRow]:
        """Messages until the iterator or the store is closed; see `Messages.subscribe`."""
        with self._listening():
            after_us = await self._beginning()
            while not self._closed:
                self._stirred.clear()
                page = await self._page(after_us)
                for row in page or []:
                    yield row
                    after_us = row.ts_us
                if not page:
                    await self._pause(_AWAY_S if page is None else self._core.config.messages.poll_ms / 1000)

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

    async def _page(self, after_us: int) -> list[MessageRow] | None:
        """The next messages; None while PostgreSQL is away. ExpiredError when they cannot be told."""
        try:
            page = await self._table.page(self._which, after_us, _PAGE, limits.MESSAGES_PAGE_BYTES_MAX, back=False)
        except UnavailableError as error:
            log.debug("a subscriber waits for PostgreSQL: %s", error)
            return None
        if page and after_us:
            self._check(after_us, page[0].dropped_us or 0)
        return page

    def _check(self, after_us: int, dropped_us: int) -> None:
        if after_us < dropped_us:
            raise ExpiredError(
                "messages after this position have been dropped for their age", tier="RELATIONAL_DB",
                hint="subscribe with since=0 for all that is kept, or raise messages.retention_s",
            )  # fmt: skip

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds * (0.75 + _dice.random() / 2)):
                await self._stirred.wait()
        except TimeoutError:
            return

    def _close(self) -> None:
        self._closed = True
        self._stirred.set()
