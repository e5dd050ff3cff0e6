"""What reached SQL, in the order of the commits (flow rule 25).

`agents.flush_log` is authoritative for which keys each commit changed, `agents.state` for what they hold. A commit is
found by number and time: where another one stands in its place, PostgreSQL has gone back since (rule 5), and where none
stands it was removed for its age. Both end the feed with an error, for nobody can tell any more what came between.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from cenote import limits
from cenote.engine import entries
from cenote.engine.core import Core
from cenote.errors import CodecError, ConsistencyError, ExpiredError, RejectedError, UnavailableError
from cenote.model import entry as model
from cenote.model import key as keys
from cenote.model.entry import Entry, Tier, Version
from cenote.sql.changes import BEFORE_ALL, Commit, CommitId
from cenote.sql.rows import Row

log = logging.getLogger("cenote.engine")

_POLL_S: Final = (0.02, 0.05, 0.1, 0.2)
_AWAY_S: Final = 1.0
_NAMELESS: Final = 20  # looks for a name: names are registered just after the commit that brings their first row

_Place = tuple[UUID, str]


@dataclass(frozen=True, slots=True)
class Change:
    """A key whose row in SQL was changed by a commit.

    Attributes:
        entry: what SQL holds of the key now: the change, or what has overtaken it, which comes again in its own place.
        position: give it to `since`, to go on after this change.
        committed_at: PostgreSQL's time of the commit, UTC.
    """

    entry: Entry
    position: str
    committed_at: datetime


class Changes:
    """One feed; iterate `events()` once."""

    def __init__(self, core: Core, since: str | int | None) -> None:
        self._core = core
        self._since = since if since is None or since == 0 else _parse(since)
        self._closed = asyncio.Event()

    async def events(self) -> AsyncIterator[Change]:
        """Changes until the iterator or the store is closed; see `Store.changes`."""
        core = self._core
        core.on_close.append(self._closed.set)
        try:
            after = await self._beginning()
            quiet = 0
            while not self._closed.is_set():
                page = await self._page(after)
                for commit in page or []:
                    async for change in self._of(commit, after, page or []):
                        yield change
                    after = commit.id
                quiet = 0 if page else quiet + 1
                if quiet:
                    await self._pause(_AWAY_S if page is None else _POLL_S[min(quiet, len(_POLL_S)) - 1])
        finally:
            core.on_close.remove(self._closed.set)

    async def _beginning(self) -> CommitId | None:
        """The commit after which the feed begins; None: with the oldest that is kept."""
        if isinstance(self._since, CommitId):
            return self._since
        head = await self._core.table.head()
        return head if self._since is None or head == BEFORE_ALL else None

    async def _page(self, after: CommitId | None) -> list[Commit] | None:
        """The next commits; None while PostgreSQL is away. ExpiredError when they cannot be told."""
        try:
            page = await self._core.table.commits(after, limits.CHANGES_PAGE_COMMITS)
        except UnavailableError as error:
            log.debug("a change feed waits for PostgreSQL: %s", error)
            return None
        if page is None:
            raise ExpiredError(
                f"commit {_text(after or BEFORE_ALL)} is not in the log any more: it was older than flush.changes_s, or"
                " the database has gone back in time", tier="RELATIONAL_DB",
                hint="read the whole state once more, then follow changes(since=0)",
            )  # fmt: skip
        return page

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return

    async def _of(self, commit: Commit, after: CommitId | None, page: list[Commit]) -> AsyncIterator[Change]:
        """The changes of one commit. What a later commit of the page changes again is told there. Until the last one
        their position is that of the commit before: who stops in between meets the whole commit again."""
        later = {place for one in page if one.number > commit.number for place in _places(one)}
        places = [place for place in _places(commit) if place not in later]
        found = await self._found(places)
        committed_at = model.from_us(commit.committed_us)
        told = [entry for place in places if (entry := await self._entry(place, *found[place])) is not None]
        for number, entry in enumerate(told, start=1):
            yield Change(entry, _text(commit.id if number == len(told) else after or BEFORE_ALL), committed_at)

    async def _found(self, places: list[_Place]) -> dict[_Place, tuple[str | None, Row | None]]:
        for _ in range(_NAMELESS):
            try:
                found = await self._core.table.changed(places)
            except UnavailableError:
                await self._pause(_AWAY_S)
                continue
            if all(name is not None for name, _ in found.values()):
                return found
            await self._pause(_POLL_S[1])
        return await self._core.table.changed(places)

    async def _entry(self, place: _Place, name: str | None, row: Row | None) -> Entry | None:
        agent_id, row_key = place
        agent = keys.agent_named(agent_id, name).text
        stored = entries.ABSENT if row is None else entries.from_row(row)  # a tombstone may be collected by now
        expired = not stored.deleted and self._core.gone(stored)
        try:
            if stored.codec == entries.BLOB and not expired:
                stored = await self._core.blobs.resolve(stored)
            return Entry.of(
                stored, agent=agent, key=keys.from_sql_key(row_key), tier=Tier.RELATIONAL_DB,
                change="expiry" if expired else None,
            )  # fmt: skip
        except (CodecError, ConsistencyError) as error:
            log.warning("a change feed passes over an unreadable row: %s", error)
            return None


def _places(commit: Commit) -> list[_Place]:
    """What a commit changed, but for the reserved agents: they are asked for by their own verbs."""
    places = zip(commit.agent_ids, commit.keys, strict=True)
    return [place for place in places if place[0] not in keys.RESERVED_IDS]


def _text(commit: CommitId) -> str:
    return str(Version(*commit))


def _parse(since: str | int) -> CommitId:
    if not isinstance(since, str):
        raise RejectedError(f"since: {since!r} is no position; give a change's `.position`, 0 or None")
    try:
        return CommitId(*Version.parse(since))
    except RejectedError:
        raise RejectedError(f"since: {since[:60]!r} is no position; give a change's `.position`, 0 or None") from None
