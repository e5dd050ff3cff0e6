"""Content search: which keys hold what, as SQL has it. An index makes it faster and changes no answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from cenote import limits
from cenote.engine import entries
from cenote.engine.core import Core
from cenote.errors import RejectedError
from cenote.model import filters
from cenote.model import key as keys
from cenote.model import value as values
from cenote.model.entry import Version, from_us
from cenote.model.page import Cursors, Page
from cenote.sql.rows import Row
from cenote.sql.search import SearchTable, Where


@dataclass(frozen=True, slots=True, kw_only=True)
class StateHit:
    """A key that was found by its content.

    Attributes:
        agent, key: whose, and which.
        value: all of it, the caller's own copy.
        version: of the write that SQL has; KV may have a newer one by now.
        written_at: the KV server's time of that write, UTC.
    """

    agent: str
    key: str
    value: Any
    version: Version
    written_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchIndexState:
    """The index of content search, as it is, whoever keeps it.

    Attributes:
        mode: "off" while there is none that could be used.
        building: whether one is on its way.
        commits_behind, lag_ms: what a projection has not seen yet, which is looked through each time instead.
    """

    mode: Literal["off", "projection", "inline"]
    building: bool
    commits_behind: int
    lag_ms: int


class ContentSearch:
    """Searches, by the projection where there is one and this process is set to it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._table = SearchTable(core.db)

    async def search(
        self, where: Mapping[str, Any], agent: str | UUID | None, key_prefix: str, limit: int, cursor: str | None
    ) -> Page[StateHit]:
        """See `Agents.search_state`."""
        cursors = Cursors(self._core.epochs.store_id, "state")
        found = filters.parse(where)
        agent_id = None if agent is None else keys.agent_ref(agent).id
        keys.encode_prefix(key_prefix)  # refuses what is no text
        after = None
        if cursor is not None:
            agent_text, after_key = cursors.read(cursor)
            after = UUID(agent_text), after_key
            if agent_id not in (None, after[0]):
                raise RejectedError("cursor: it is of a search of another agent")
        asked = Where(agent_id, after, keys.sql_key(key_prefix), found)
        rows = await self._rows(asked, limit + 1)
        hits = [_hit(name, row) for name, row in rows[:limit]]
        # A page that ended early for its size has a next one, which tells that there was nothing more at worst.
        last = rows[len(hits) - 1][1] if hits and (len(rows) > limit or _large(rows)) else None
        return Page(hits, None if last is None else cursors.write(str(last.agent_id), last.key))

    async def _rows(self, asked: Where, limit: int) -> list[tuple[str | None, Row]]:
        now_us = self._core.now_ms() * 1000
        if self._core.config.sql.search_index == "projection":
            rows = await self._table.find(asked, limit, now_us, projected=True)
            if rows is not None:
                return rows
        return await self._table.find(asked, limit, now_us, projected=False) or []

    async def index(self) -> SearchIndexState:
        """See `Agents.search_index`."""
        state = await self._table.state()
        mode: Literal["off", "projection", "inline"] = "inline" if state.inline else "off"
        if state.filled:
            mode = "projection"
        building = state.inline is False or bool(state.projected and not state.filled)
        return SearchIndexState(
            mode=mode, building=building, commits_behind=state.commits or 0, lag_ms=max(0, state.lag_ms or 0)
        )


def _hit(name: str | None, row: Row) -> StateHit:
    stored = entries.from_row(row)
    return StateHit(
        agent=keys.agent_named(row.agent_id, name).text, key=keys.from_sql_key(row.key),
        value=values.decode(stored.codec, stored.body), version=stored.version, written_at=from_us(stored.written_us),
    )  # fmt: skip


def _large(rows: list[tuple[str | None, Row]]) -> bool:
    """Whether these may be fewer than there are, because of their size: by the least that PostgreSQL counts."""
    return sum(len(row.value or "") + len(row.raw or b"") for _, row in rows) > limits.PAGE_BYTES_MAX // 255
