"""The registry's columns follow the state, and never go back (I3 for a copy; flow rule 23)."""

import asyncio
from typing import Any

import pytest
from pg_server import GUARD, beat, db, pg, row, table

from cenote.model.filters import parse
from cenote.model.key import PROFILES, agent_ref
from cenote.sql.loader import Queries
from cenote.sql.pool import Database
from cenote.sql.state import StateTable
from witness import demand, toothed

__all__ = ["db", "pg", "table"]  # fixtures

EVERY = parse({})
SCOUT = agent_ref("scout")


def the_fence_of_the_registry(patch: pytest.MonkeyPatch) -> None:
    """Whoever writes last stays."""
    plain = Queries.__getitem__
    fence = "AND (coalesce(r.epoch, 0), coalesce(r.version, 0)) < (s.epoch, s.version)"

    def text(self: Queries, name: str) -> str:
        query = plain(self, name)
        assert name != "project_profiles" or fence in query
        return query.replace(fence, "")

    patch.setattr(Queries, "__getitem__", text)


async def _say(table: StateTable, version: int, status: str, **changes: Any) -> None:
    value = f'{{"type": "scout", "status": "{status}", "metadata": {{"n": {version}}}}}'
    said = row(PROFILES.id, "scout", version, **({"value": value} | changes))
    assert await table.flush([said], GUARD, beat(version)) is not None


async def _status(db: Database) -> Any:
    return await db.fetchval(f"SELECT status FROM {db.names.schema('agents')}.registry WHERE agent_id = $1", SCOUT.id)


@toothed(the_fence_of_the_registry)
async def test_a_projection_that_waited_does_not_undo_a_faster_one(table: StateTable, db: Database) -> None:
    """It has read version 1 and waits for the row; version 2 is flushed and projected by who holds the row."""
    await table.register([(SCOUT.id, "scout")])
    await _say(table, 1, "old")
    query = db.queries["project_profiles"]
    async with db.connection() as con:
        async with con.transaction():
            await con.execute(f"SELECT FROM {db.names.schema('agents')}.registry FOR UPDATE")
            late = asyncio.create_task(table.project_profiles(["scout"]))
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while not await con.fetchval(waiting):
                await asyncio.sleep(0.01)
                await con.execute("SELECT pg_stat_clear_snapshot()")
            await _say(table, 2, "new")
            await con.execute(query, PROFILES.id, ["scout"])
        await late
    status = await _status(db)
    demand(status == "new", f"I3: the registry went back: it says {status!r}, the state says 'new'")


async def test_the_columns_say_what_the_state_says(table: StateTable, db: Database) -> None:
    await table.register([(SCOUT.id, "scout")])
    assert await table.stale_profiles() == []
    await _say(table, 3, "idle")
    assert await table.stale_profiles() == ["scout"]
    assert await table.project_profiles(["nobody"]) == 0
    assert await table.project_profiles(["scout", "nobody"]) == 1
    assert await table.project_profiles(["scout"]) == 0  # repeated
    (found,) = await table.find_agents("", 10, None, None, EVERY)
    assert (found.agent_type, found.status, found.metadata, found.version) == ("scout", "idle", '{"n": 3}', 3)
    assert await table.stale_profiles() == []
    for odd in ('"text"', "[1]", '{"metadata": [1], "type": {}}', "7"):
        await _say(table, found.version + 1, "", value=odd)
        assert await table.project_profiles(["scout"]) == 1
        found = await table.registered(SCOUT.id)
        assert found is not None
        assert (found.metadata, found.status) == ("{}", "unknown")
    await _say(table, found.version + 1, "", value=None, deleted=True)
    assert await table.project_profiles(["scout"]) == 1
    assert await table.find_agents("", 10, None, None, EVERY) == []
    gone = await table.registered(SCOUT.id)
    assert gone is not None
    assert (gone.deleted, gone.agent_type) == (True, "agent")
