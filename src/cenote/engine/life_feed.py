"""What is done with agents on purpose, as it happens, for whoever wants to follow it (`agents.lifecycle_events`).

Each event once and in the order of its number. Numbers are given before the commit, so a page is read behind a fence
that waits for those who have one and are not done (flow rule 25); a cheap look says whether there is anything to read.
"""

import asyncio
import fnmatch
import logging
from collections.abc import AsyncIterator
from typing import Final

from cenote.engine.core import Core
from cenote.engine.lifecycle import LifecycleEvent
from cenote.errors import ExpiredError, OutcomeUnknownError, RejectedError, TransactionError, UnavailableError
from cenote.model import key as keys
from cenote.model.entry import Version
from cenote.sql.changes import BEFORE_ALL, CommitId
from cenote.sql.lifecycle import LifecycleTable, Told

log = logging.getLogger("cenote.engine")

_POLL_S: Final = (0.05, 0.1, 0.2, 0.4)
_PAGE: Final = 500
_AWAY = (UnavailableError, TransactionError, OutcomeUnknownError)


class LifeFeed:
    """One feed; iterate `events()` once."""

    def __init__(self, core: Core, agents: str, since: str | int | None) -> None:
        self._core = core
        self._table = LifecycleTable(core.db)
        self._agents = agents
        self._since = _place(since)
        self._closed = asyncio.Event()

    async def events(self) -> AsyncIterator[LifecycleEvent]:
        """Events until the iterator or the store is closed; see `Store.lifecycle_events`."""
        core = self._core
        core.on_close.append(self._closed.set)
        try:
            after = self._since if self._since is not None else await self._table.last_of_all()
            quiet = 0
            while not self._closed.is_set():
                page = await self._page(after)
                for row in page:
                    after = row.id
                    name = str(row.agent_id) if row.name is None else keys.from_sql_key(row.name)
                    if fnmatch.fnmatchcase(name, self._agents):
                        yield LifecycleEvent.of(row, name)
                quiet = 0 if page else quiet + 1
                if quiet:
                    await self._pause(_POLL_S[min(quiet, len(_POLL_S)) - 1])
        finally:
            core.on_close.remove(self._closed.set)

    async def _page(self, after: CommitId) -> list[Told]:
        """The next events; [] also while PostgreSQL is away, or somebody takes long to write one down."""
        try:
            if await self._table.last() == after:
                return []
            page = await self._table.feed(after, _PAGE)
        except _AWAY as error:
            log.debug("a feed of agents' lives waits for PostgreSQL: %s", error)
            return []
        if page is None:
            raise ExpiredError(
                f"event {Version(*after)} is not there any more: it was older than 30 days, or the database has gone"
                " back in time", tier="RELATIONAL_DB", hint="look at the agents once more, then follow from now on",
            )  # fmt: skip
        return page

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return


def _place(since: str | int | None) -> CommitId | None:
    if since is None:
        return None
    if type(since) is int and since == 0:
        return BEFORE_ALL
    try:
        if isinstance(since, str):
            return CommitId(*Version.parse(since))
    except RejectedError:
        pass  # said below, in words that fit
    raise RejectedError(f"since: {str(since)[:60]!r} is no position; give an event's `.position`, 0 or None")
