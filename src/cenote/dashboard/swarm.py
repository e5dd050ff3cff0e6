"""The page of all agents: by name, by what PostgreSQL lacks of them, or by when they were written last.

By name a page is a range of an index, however many agents there are. Nothing sorts them by the others, so those orders
cover what can be looked through at once, and say how far they go.
"""

import asyncio
from typing import Any, Final
from uuid import UUID

from cenote import limits
from cenote.dashboard.parts import LOOK_S, NATS, POSTGRESQL, first, part
from cenote.dashboard.showing import moment
from cenote.engine.unflushed import AgentLag
from cenote.errors import NotFoundError
from cenote.lifecycle import Phase
from cenote.model import key as keys
from cenote.sql.rows import AgentRow
from cenote.store import Store

SORTS: Final = ("name", "unflushed", "written")
_COMMITS: Final = 1_000  # of flushes, of which it is read who was written last
_CHOSEN_MAX: Final = 1_000  # agents of such an order that are looked at for one page
_INT8_MAX: Final = 2**63 - 1
_LAST: Final = UUID(int=2**128 - 1)
_Late = asyncio.Future[dict[str, Any]]


class Swarm:
    """The documents of many agents."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._table = store._machines.core.table
        self._phases = store._machines.lifecycle.table

    async def agents(self, prefix: str, phase: str, sort: str, after: str, *, limit: int) -> dict[str, Any]:
        """A page of agents. `note` says what an order does not cover, `error` what is down.

        Raises:
            NotFoundError: there is no such order, phase or page.
        """
        sort = sort or SORTS[0]
        if sort not in SORTS or (phase and phase not in tuple(Phase)) or len(prefix) > limits.AGENT_CHARS_MAX:
            raise NotFoundError("there is no such page")
        lagging = asyncio.ensure_future(self._lagging())
        try:
            made = {"name": self._by_name, "unflushed": self._by_unflushed, "written": self._by_written}[sort]
            found = await made(prefix, phase, after, limit, lagging)
            late = await lagging
        finally:
            lagging.cancel()
        looked = late["value"]
        if looked is not None and not looked.compared:
            found["note"] = first(
                found["note"], "PostgreSQL was not asked: it may have some of what counts as unflushed"
            )
        return {
            "prefix": prefix, "phase": phase, "sort": sort, "sorts": list(SORTS), "phases": [str(one) for one in Phase],
            **found, "error": first(found["error"], late["error"]),
        }  # fmt: skip

    async def _lagging(self) -> dict[str, Any]:
        late = await part(self._store.lagging(limits.DIRTY_COUNT_MAX), NATS, LOOK_S)
        return late | {"by_name": {one.agent: one for one in late["value"] or []}}

    async def _by_name(self, prefix: str, phase: str, after: str, limit: int, lagging: _Late) -> dict[str, Any]:
        rows, late = await asyncio.gather(
            part(self._table.named(keys.sql_key(prefix), keys.sql_key(after), limit + 1, phase or None), POSTGRESQL),
            lagging,
        )
        found: list[AgentRow] = rows["value"] or []
        note = None
        if rows["error"]:  # NATS knows at least who waits
            names = sorted(one.agent for one in late["value"] or [] if one.agent.startswith(prefix))
            names = [name for name in names if name > after][: limit + 1]
            note = "only agents with unflushed writes are listed" if names else None
            listed = [_listed(name, None, late) for name in names]
        else:
            listed = [_listed(keys.from_sql_key(row.name), row, late) for row in found]
        more = listed[limit - 1]["name"] if len(listed) > limit else None
        return {"agents": listed[:limit], "next": more, "note": note, "error": rows["error"]}

    async def _by_unflushed(self, prefix: str, phase: str, after: str, limit: int, lagging: _Late) -> dict[str, Any]:
        late = await lagging
        looked = late["value"]
        chosen: list[AgentLag] = sorted(looked or [], key=lambda one: (-one.dirty, one.agent))
        if after:
            count, _, name = after.partition(" ")
            place = -_number(count), name
            chosen = [one for one in chosen if (-one.dirty, one.agent) > place]
        names = {keys.agent_ref(one.agent).id: one.agent for one in chosen if one.agent.startswith(prefix)}
        page, told, error = await self._fitting(list(names), phase, limit)
        listed = [_listed(names[one], told.get(one), late) for one in page]
        more = f"{listed[limit - 1]['dirty']} {listed[limit - 1]['name']}" if len(listed) > limit else None
        note = "this order covers the agents of which PostgreSQL lacks something"
        if looked is not None and looked.cut:
            note += f", and of these the {len(looked):,} that have waited longest"
        return {"agents": listed[:limit], "next": more, "note": note, "error": error}

    async def _by_written(self, prefix: str, phase: str, after: str, limit: int, lagging: _Late) -> dict[str, Any]:
        number, _, of = after.partition(" ")
        place = (_number(number), _uuid(of)) if after else (_INT8_MAX, _LAST)
        written = await part(self._table.last_written(_COMMITS, place, _CHOSEN_MAX), POSTGRESQL)
        order = dict[UUID, int](written["value"] or [])
        names = await part(self._table.names(list(order)), POSTGRESQL) if order else {"value": {}, "error": None}
        known = {one: keys.from_sql_key(name) for one, name in (names["value"] or {}).items()}
        fits = [one for one in order if one in known and known[one].startswith(prefix)]
        page, told, error = await self._fitting(fits, phase, limit)
        late = await lagging
        listed = [_listed(known[one], told.get(one), late) for one in page]
        last = page[limit - 1] if len(page) > limit else None
        if last is None and len(order) == _CHOSEN_MAX:
            last = list(order)[-1]  # there may be some that fit behind those that were looked at
        more = None if last is None else f"{order[last]} {last}"
        note = f"this order covers the agents that were written in the newest {_COMMITS:,} commits to PostgreSQL"
        failed = first(written["error"], names["error"], error)
        return {"agents": listed[:limit], "next": more, "note": note, "error": failed}

    async def _fitting(
        self, chosen: list[UUID], phase: str, limit: int
    ) -> tuple[list[UUID], dict[UUID, AgentRow], str | None]:
        """The first of these that stand in this phase, one more than a page has, and what the registry says of them."""
        noted: dict[str, Any] = {"error": None}
        if phase and chosen:
            noted = await part(self._phases.rows(chosen[:_CHOSEN_MAX]), POSTGRESQL)
            known = noted["value"] or {}
            chosen = [one for one in chosen if (known[one].phase if one in known else Phase.ACTIVE) == phase]
        page = chosen[: limit + 1]
        rows = await part(self._table.agents_of(page), POSTGRESQL) if page else {"value": {}, "error": None}
        return page, rows["value"] or {}, first(noted["error"], rows["error"])


def _listed(name: str, row: AgentRow | None, late: dict[str, Any]) -> dict[str, Any]:
    """One line. `keys` is None for an agent that PostgreSQL does not know, or cannot tell of; `dirty` where NATS cannot
    tell, or only of those that have waited longer."""
    looked = late["value"]
    lag = late["by_name"].get(name)
    told = {
        "name": name, "id": str(keys.agent_ref(name).id), "type": None, "status": None, "phase": None, "keys": None,
        "updated_at": None, "dirty": 0 if looked is not None and not looked.cut else None, "oldest_ms": None,
    }  # fmt: skip
    if row is not None:
        told |= {
            "id": str(row.agent_id), "type": row.agent_type, "status": row.status,
            "phase": row.phase or str(Phase.ACTIVE), "keys": row.keys, "updated_at": moment(row.updated_us),
        }  # fmt: skip
    if lag is not None:
        told |= {"dirty": lag.dirty, "oldest_ms": lag.oldest_ms}
    return told


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise NotFoundError("there is no such page")
    return int(text)


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise NotFoundError("there is no such page") from None
