"""Reading state: by key, by page, by version, and through the function that SQL users have."""

from uuid import UUID, uuid4

from pg_server import GUARD, NOW_US, beat, db, pg, row, table

from cenote.sql.pool import Database
from cenote.sql.rows import Row
from cenote.sql.state import StateTable

__all__ = ["db", "pg", "table"]  # fixtures

DAY_US = 86_400_000_000


async def _now_us(db: Database) -> int:
    return int(await db.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"))


async def _filled(table: StateTable, db: Database) -> tuple[UUID, dict[str, Row]]:
    agent, now_us = uuid4(), await _now_us(db)
    rows = [
        row(agent, "a", 1),
        row(agent, "a/b", 2),
        row(agent, "a/c", 3, deleted=True, value=None),
        row(agent, "a/d", 4, expires_us=now_us - DAY_US),
        row(agent, "a/e", 5, expires_us=now_us + DAY_US),
        row(agent, "a0", 6, quarantined=True, value=None, raw=b"x"),
        row(agent, "é", 7),
        row(agent, "\U0010ffff", 8),
    ]
    others = [row(uuid4(), "a/b", 9), row(uuid4(), "a/b", 10)]
    assert await table.flush([*rows, *others], GUARD, beat()) is not None
    return agent, {held.key: held for held in rows}


async def test_an_absent_key_is_none(table: StateTable) -> None:
    assert await table.read(uuid4(), "k") is None
    assert await table.read_many(uuid4(), ["k"]) == []
    assert await table.page(uuid4(), None, "", 10, live_only=False) == []


async def test_many_keys_at_once(table: StateTable, db: Database) -> None:
    agent, held = await _filled(table, db)
    found = await table.read_many(agent, ["a", "a/c", "absent", "é"])
    assert {each.key: each for each in found} == {key: held[key] for key in ("a", "a/c", "é")}


async def test_pages_follow_one_another_in_byte_order(table: StateTable, db: Database) -> None:
    agent, held = await _filled(table, db)
    seen: list[Row] = []
    while page := await table.page(agent, seen[-1].key if seen else None, "", 3, live_only=False):
        assert len(page) <= 3
        seen += page
    assert seen == [held[key] for key in sorted(held, key=str.encode)]


async def test_a_prefix_is_met_exactly(table: StateTable, db: Database) -> None:
    agent, _ = await _filled(table, db)
    for prefix, keys in {"a": 6, "a/": 4, "a/b": 1, "\U0010ffff": 1, "é": 1, "z": 0}.items():
        page = await table.page(agent, None, prefix, 100, live_only=False)
        assert len(page) == keys, prefix
        assert all(each.key.startswith(prefix) for each in page)
    assert [r.key for r in await table.page(agent, "a/b", "a/", 2, live_only=False)] == ["a/c", "a/d"]


async def test_live_rows_are_neither_deleted_nor_expired(table: StateTable, db: Database) -> None:
    agent, _ = await _filled(table, db)
    live = [r.key for r in await table.page(agent, None, "a", 100, live_only=True)]
    assert live == ["a", "a/b", "a/e", "a0"]
    later_us = await _now_us(db) + 2 * DAY_US
    live = [r.key for r in await table.page(agent, None, "a", 100, live_only=True, now_us=later_us)]
    assert live == ["a", "a/b", "a0"]


async def test_the_function_for_sql_users_shows_live_keys(table: StateTable, db: Database) -> None:
    agent, held = await _filled(table, db)
    call = f"SELECT key, value::text AS value FROM {db.names.schema('agents')}.hydrate_agent_state($1)"
    found = {r["key"]: r["value"] for r in await db.fetch(call, agent)}
    assert found == {key: held[key].value for key in ("a", "a/b", "a/e", "é", "\U0010ffff")}


async def test_versions_of_many_keys(table: StateTable, db: Database) -> None:
    agent, _ = await _filled(table, db)
    asked = [(agent, "a"), (agent, "a/c"), (agent, "absent"), (uuid4(), "a")]
    assert await table.versions(asked) == {
        (agent, "a"): (1, 1, NOW_US + 1),
        (agent, "a/c"): (1, 3, NOW_US + 3),
    }
    assert await table.versions([]) == {}


async def test_of_many_entries_those_that_sql_has_newer(table: StateTable, db: Database) -> None:
    """What is as new, or newer, or not in SQL at all, is not told."""
    agent, _ = await _filled(table, db)
    asked = [
        (agent, "a", 1, 1), (agent, "a/c", 1, 2), (agent, "a/c", 1, 4), (agent, "a/c", 0, 99), (agent, "a/c", 2, 1),
        (agent, "absent", 0, 0), (uuid4(), "a", 0, 0),
    ]  # fmt: skip
    agents, keys, epochs, versions = zip(*asked, strict=True)
    newer = (1, 3, NOW_US + 3)
    assert sorted(await table.newer(agents, keys, epochs, versions)) == [(1, newer), (3, newer)]


async def test_newer_than_pages_through_one_agent_or_all(table: StateTable, db: Database) -> None:
    agent, _ = await _filled(table, db)
    await table.register([(agent, "scout")])
    found = [(name, held.version) async for name, held in table.newer_than(1, 4, agent, 2)]
    assert found == [("scout", 5), ("scout", 6), ("scout", 7), ("scout", 8)]
    every = [(name, held.version) async for name, held in table.newer_than(1, 4, None, 2)]
    assert sorted(every, key=lambda pair: pair[1]) == [*found, (None, 9), (None, 10)]
    assert [held async for _, held in table.newer_than(1, 10, None, 2)] == []


async def test_counting_is_exact_while_it_is_cheap(table: StateTable, db: Database) -> None:
    assert await table.count_rows() == 0
    await _filled(table, db)
    assert await table.count_rows() == 10


async def test_agents_are_registered_once_and_never_in_the_way(table: StateTable, db: Database) -> None:
    agent, _ = await _filled(table, db)
    other = uuid4()
    assert await table.register([(other, "base"), (agent, "scout")]) == 2
    assert await table.register([(agent, "scout"), (uuid4(), "scout"), (agent, "another name")]) == 0
    assert await table.register([]) == 0
    first, second = sorted([(agent, "scout", 6), (other, "base", 0)])
    page = await table.agents_page(None, 1)
    assert [entry[:3] for entry in page] == [first]
    page = await table.agents_page(page[0].agent_id, 5)
    assert [entry[:3] for entry in page] == [second]
    by_name = {entry.name: entry for entry in await table.agents_page(None, 5)}
    assert by_name["base"].updated_us is None
    assert abs((by_name["scout"].updated_us or 0) - await _now_us(db)) < DAY_US
