"""Content search: the same answers without an index, by one on the state, and by a projection beside it."""

import asyncio
import random
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

import cenote
from cenote.engine.search_index import SearchIndex
from cenote.model.filters import parse
from cenote.model.key import RESERVED_IDS
from cenote.repositories.agents import Agent
from cenote.sql.search import SearchTable, Where
from cenote.store import Store
from cenote.testing import TestServers
from witness import Tables, another, demand, evict_all, reached, tables

MODES = ("off", "projection", "inline")


async def ready(store: Store) -> None:
    """Until the index that the store is set to is there."""
    mode = store.config.sql.search_index

    async def there() -> bool:
        return (await store.agents.search_index()).mode == mode

    await reached(there, f"the index {mode}")


async def ids(store: Store, where: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    """Every hit, by pages of 3."""
    found, cursor = [], None
    while True:
        page = await store.agents.search_state(where, limit=3, cursor=cursor, **options)
        found += [(hit.agent, hit.key) for hit in page]
        if (cursor := page.next) is None:
            return found


@pytest.mark.parametrize("mode", MODES)
async def test_every_mode_finds_the_same(mode: str, cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(sql__search_index=mode)) as store:
        for number in range(12):
            value = {"goal": {"name": "cave" if number % 2 else "hill"}, "tags": ["a", f"t{number}"], "n": number}
            await store.agent(f"a{number % 3}").put(f"plan/{number}", value)
        await store.agent("a0").put("other", {"goal": {"name": "cave"}, "nul": "\x00"})
        await store.agent("a0").put("short", {"goal": {"name": "cave"}}, ttl=timedelta(milliseconds=1))
        await store.agent("a1").put("large", {"goal": {"name": "cave"}, "text": noise(1_000_000)})
        await store.agents.save(Agent(name="a0", metadata={"goal": {"name": "cave"}}))
        await store.flush(20)
        await ready(store)
        await asyncio.sleep(0.1)
        cave = [(f"a{number % 3}", f"plan/{number}") for number in range(1, 12, 2)] + [("a0", "other")]
        wanted = {"goal.name": "cave"}
        for look in ("at once", "later"):
            assert sorted(await ids(store, wanted)) == sorted(cave), (mode, look)
            assert await ids(store, {"n": 5.0}) == [("a2", "plan/5")]
            assert await ids(store, {"tags": {"contains": "t4"}}) == [("a1", "plan/4")]
            assert await ids(store, wanted, agent="a0", key_prefix="pl") == [("a0", "plan/3"), ("a0", "plan/9")]
            assert await ids(store, {"goal": "cave"}) == await ids(store, wanted, agent="nobody") == []
            await asyncio.sleep(1.2 if mode == "projection" and look == "at once" else 0)
        await store.agent("a0").delete("other")
        await store.agent("a0").put("plan/3", {"goal": {"name": "sea"}})
        await store.agent("a2").put("new", {"goal": {"name": "cave", "x": 1}})
        await store.flush(20)
        changed = [*(one for one in cave if one not in [("a0", "other"), ("a0", "plan/3")]), ("a2", "new")]
        demand(sorted(await ids(store, wanted)) == sorted(changed), f"I3: {mode} shows what is no more, or not all")
        (hit,) = await store.agents.search_state({"goal.x": {"gt": 0}})
        entry = await store.agent("a2").entry("new")
        assert (hit.agent, hit.key, hit.value, hit.version) == ("a2", "new", entry.value, entry.version)


def noise(size: int) -> str:
    return "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOP", k=size))


async def fill(sql: Tables, store: Store, rows: int) -> None:
    """So many rows as a flush would leave them, and statistics."""
    await store.agent("a").put("k", {"n": -1}, durability="sql")
    await sql.link.execute(
        f"INSERT INTO {sql.schema}.state SELECT agent_id, 'k' || n, jsonb_build_object('n', n, 'goal', 'hill'), NULL,"
        f" n + 10, epoch, kv_time, false, false, NULL, now() FROM {sql.schema}.state, generate_series(1, {rows}) AS n"
        f" WHERE key = 'k' AND agent_id <> ALL ($1::uuid[])", list(RESERVED_IDS),
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["projection", "inline"])
async def test_the_index_is_used_where_it_can_be(mode: str, cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        await fill(sql, store, 8_000)
        async with another(store, sql__search_index=mode) as reader:
            index = SearchIndex(reader._core)
            await index.tend()
            assert (await reader.agents.search_index()).mode == mode
            await sql.link.execute(f"ANALYZE {sql.schema}.state; ANALYZE {sql.schema}.search")
            assert await ids(reader, {"n": 4_711}) == [("a", "k4711")]
            where = Where(None, None, "", parse({"n": 4_711, "goal": {"ne": "cave"}}))
            statement = SearchTable(reader._core.db).statement(where, 10, 0, projected=mode == "projection")
            assert statement is not None
            plan = "\n".join(r[0] for r in await sql.link.fetch(f"EXPLAIN {statement[0]}", *statement[1]))
            assert ("search_value" if mode == "projection" else "state_value") in plan, plan
            assert "Seq Scan on state" not in plan, plan


async def test_an_index_comes_and_goes_with_its_setting_however_many_at_once(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        await fill(sql, store, 3_000)
        for mode in ("inline", "projection"):
            async with another(store, sql__search_index=mode) as one, another(store, sql__search_index=mode) as two:
                both = [SearchIndex(one._core), SearchIndex(two._core)]
                await asyncio.gather(*(index.tend() for index in both))
                assert (await one.agents.search_index()).mode == mode
                assert await ids(two, {"n": 7}) == [("a", "k7")]
        state = await SearchTable(store._core.db).state()
        assert (state.inline, state.filled) == (True, True)  # who wants the one does not drop the other at once
        patient, now = SearchIndex(store._core), SearchIndex(store._core, drop_s=0)
        await patient.tend()
        assert (await SearchTable(store._core.db).state()).inline
        await asyncio.gather(now.tend(), SearchIndex(store._core, drop_s=0).tend())
        state = await SearchTable(store._core.db).state()
        assert (state.inline, state.projected) == (None, None)
        assert await sql.link.fetchval(f"SELECT count(*) FROM {sql.schema}.search") == 0
        assert await ids(store, {"n": 7}) == [("a", "k7")]


async def test_a_half_built_index_is_built_anew(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        await fill(sql, store, 100)
        building = store._core.db.queries["search_inline_create"]
        async with tables(cenote_servers, store) as holder, holder.link.transaction():
            await holder.link.execute(f"LOCK {sql.schema}.state IN ROW EXCLUSIVE MODE")
            await sql.link.execute("SET statement_timeout = 200")
            with pytest.raises(asyncpg.QueryCanceledError):
                await sql.link.execute(building)
        assert (await store.agents.search_index()).building
        async with another(store, sql__search_index="inline") as other:
            await SearchIndex(other._core).tend()
        assert (await store.agents.search_index()).mode == "inline"


async def test_a_projection_that_stands_still_is_late_and_not_wrong(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, another(store, sql__search_index="projection") as reader:
        await store.agent("a").put("k", {"n": 1}, durability="sql")
        await SearchIndex(reader._core).tend()
        for number in (2, 3):
            await store.agent("a").put("k", {"n": number}, durability="sql")
        await store.agent("b").put("k", {"n": 3}, durability="sql")
        late = await reader.agents.search_index()
        assert (late.mode, late.commits_behind) == ("projection", 3)
        assert late.lag_ms > 0
        assert await ids(reader, {"n": 1}) == []
        assert sorted(await ids(reader, {"n": 3})) == [("a", "k"), ("b", "k")]
        table = SearchTable(reader._core.db)
        await reader._core.db.execute(f"DELETE FROM {reader._core.names.schema('agents')}.flush_log")
        while await table.step():  # what it had not seen was pruned: it is filled anew
            pass
        assert sorted(await ids(reader, {"n": 3})) == [("a", "k"), ("b", "k")]


async def test_bad_input_and_long_searches(cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        search = store.agents.search_state
        for bad in ("x", [1], None, {"x": "y" * 70_000}, {"x": float("nan")}, {1: 2}):
            with pytest.raises(cenote.RejectedError):
                await search(bad)  # type: ignore[arg-type]  # that is the bad input
        for options in ({"limit": 0}, {"agent": ""}, {"key_prefix": 5}):
            with pytest.raises(cenote.RejectedError):
                await search({"n": 1}, **options)  # type: ignore[arg-type]  # the same
        await store.agents.save(Agent(name="a"))
        await store.flush(20)
        foreign = (await store.agents.list(limit=1)).next
        assert foreign is None
        with pytest.raises(cenote.NotFoundError, match="no such page"):
            await search({"n": 1}, cursor="QUJD" * 20)
        assert (await search({"x'; DROP TABLE agents.state; --": "'"})).items == []
        monkeypatch.setattr("cenote.limits.SEARCH_MS_MAX", 200)
        async with sql.link.transaction():
            await sql.link.execute(f"LOCK {sql.schema}.state IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(cenote.UnavailableError, match="given up") as late:
                await search({"n": 1})
        assert late.value.hint is not None
        assert "search_index" in late.value.hint


async def test_agents_are_found_by_what_they_say(cenote_store: Store) -> None:
    agents = cenote_store.agents
    for number in range(6):
        metadata = {"skills": ["dive", f"s{number}"], "depth": {"max_m": number * 10}}
        await agents.save(Agent(name=f"a{number}", type=f"t{number % 2}", status="idle", metadata=metadata))
    await agents.delete("a4")
    await cenote_store.flush(20)
    assert await evict_all(cenote_store) > 0
    found = await agents.search({"skills": {"contains": "dive"}}, type="t0", status="idle")
    assert [one.name for one in found] == ["a0", "a2"]
    assert [one.name for one in await agents.search({"depth.max_m": 30})] == ["a3"]
    assert [one.name for one in await agents.search(status="busy")] == []
    page = await agents.search({"skills": {"contains": "dive"}}, limit=2)
    rest = await agents.search({"skills": {"contains": "dive"}}, limit=3, cursor=page.next)
    assert [one.name for one in [*page, *rest]] == ["a0", "a1", "a2", "a3", "a5"]
    for bad in ({"where": "x"}, {"type": ""}, {"status": 5}):
        with pytest.raises(cenote.RejectedError):
            await agents.search(**bad)  # type: ignore[arg-type]  # that is the bad input
