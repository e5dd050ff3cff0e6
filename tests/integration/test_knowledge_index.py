"""The index on embeddings: it proposes, the exact numbers decide. Where the server has no pgvector, every search is
exact, and the same answers are asked for."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

import cenote
from cenote.repositories.knowledge_index import IndexUpkeep
from cenote.sql.nearness import NearTables, Server
from cenote.store import Store
from cenote.testing import TestServers
from witness import Violation, another, demand, tables

DIMENSIONS, COUNT = 8, 300
DICE = random.Random(11)


def somewhere() -> list[float]:
    return [DICE.gauss(0, 1) for _ in range(DIMENSIONS)]


QUERIES = [somewhere() for _ in range(3)]


class Ground:
    """A store whose namespace is large, another process that compares all embeddings, and PostgreSQL itself."""

    def __init__(self, store: Store, exact: Store, sql: Any) -> None:
        self.store, self.exact, self.sql = store, exact, sql
        self.schema = store._core.db.names.schema("knowledge")

    async def indexed(self) -> bool:
        """Make and fill the index; whether this server has one."""
        upkeep = IndexUpkeep(self.store._core)
        for _ in range(4):  # the table, its index, its use; once more for what somebody damaged
            upkeep._look_at = 0.0
            await upkeep.tend()
        self.store.knowledge._index._known.clear()
        state = await self.store.knowledge.vector_index()
        has = (await NearTables(self.store._core.db).server()).why_not is None
        assert (state.back_end == "pgvector") == has, state
        assert not has or state.indexed == state.embeddings, state
        return has

    async def the_same(self, where: dict[str, Any] | None = None, limit: int = 10) -> list[UUID]:
        """What both find nearest to the last of several queries; they must agree on all."""
        for query in QUERIES:
            options: dict[str, Any] = {"embedding": query, "where": where, "limit": limit}
            one = await self.store.knowledge.search(**options)
            other = await self.exact.knowledge.search(**options)
            demand([hit.fact.id for hit in one] == [hit.fact.id for hit in other], "the index shows something else")
            assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], abs=1e-12)
        return [hit.fact.id for hit in one]


@pytest.fixture
async def ground(cenote_servers: TestServers) -> AsyncIterator[Ground]:
    settings = cenote_servers.fresh(knowledge__vector_index_rows=100, flush__enabled=False)
    async with (
        cenote.open(**settings) as store,
        another(store, knowledge__vector_index="off") as exact,
        tables(cenote_servers, store) as sql,
    ):
        await store.knowledge.add_many(
            [{"text": f"fact {n}", "metadata": {"n": n}, "embedding": somewhere()} for n in range(COUNT)]
        )
        yield Ground(store, exact, sql)


async def test_an_index_finds_what_comparing_all_finds_while_facts_come_and_go(ground: Ground) -> None:
    knowledge = ground.store.knowledge
    state = await knowledge.vector_index()
    assert (state.back_end, state.embeddings, state.indexed) == ("exact", COUNT, 0)
    assert (await ground.exact.knowledge.vector_index()).why == "knowledge.vector_index is off"
    await ground.the_same()
    has = await ground.indexed()
    first, second, third, *_ = await ground.the_same()
    demand(await ground.the_same({"n": {"gte": COUNT - 2}}) != [], "a filter costs results")
    assert len(await ground.the_same({"n": {"lt": 150}})) == 10
    assert len(await ground.the_same(limit=COUNT)) == COUNT

    new = await knowledge.add("new", embedding=QUERIES[-1], metadata={"n": -1})
    assert (await ground.the_same())[0] == new.id == (await ground.the_same({"n": -1}))[0]
    newer = await knowledge.supersede(first, "newer", embedding=QUERIES[-1])
    await knowledge.delete(second)
    await knowledge.save(cenote.Fact(id=third, text="another text"))
    found = await ground.the_same()
    assert {new.id, newer.id} == set(found[:2])
    assert not {first, second, third} & set(found)
    await knowledge.update(await knowledge.find(newer.id))  # the same text keeps its place
    assert (await ground.the_same())[:2] == found[:2]
    await ground.indexed()
    assert await ground.the_same() == found
    if has:  # what the index does not propose is not found: it is in use
        await ground.sql.link.execute(
            f"DELETE FROM {ground.schema}.near_1 WHERE vector_id = "
            f"(SELECT vector_id FROM {ground.schema}.facts WHERE fact_id = $1)", new.id,
        )  # fmt: skip
        with pytest.raises(Violation, match="something else"):
            await ground.the_same()
    assert await knowledge.forget() == COUNT + 1  # one was deleted, two were added
    assert await ground.the_same() == []


async def test_what_is_not_in_the_index_yet_is_searched_beside_it(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look() -> None:
        await ground.store.knowledge.add("new", embedding=QUERIES[-1])
        await ground.the_same()

    has = await ground.indexed()
    await look()
    search = NearTables.search

    async def without_tail(self: NearTables, *args: Any) -> Any:
        return (await search(self, *args))[0], []

    monkeypatch.setattr(NearTables, "search", without_tail)
    if has:
        with pytest.raises(Violation, match="something else"):
            await look()


async def test_several_make_one_index_and_what_is_damaged_is_made_anew(ground: Ground) -> None:
    async with another(ground.store) as other:
        upkeeps = [IndexUpkeep(store._core) for store in (ground.store, other, ground.store)]
        for _ in range(3):
            for upkeep in upkeeps:
                upkeep._look_at = 0.0
            await asyncio.gather(*(upkeep.tend() for upkeep in upkeeps))
    has = await ground.indexed()
    numbers = f"SELECT array_agg(near) FROM {ground.schema}.spaces WHERE near IS NOT NULL"
    assert await ground.sql.link.fetchval(numbers) == ([1] if has else None) or has
    found = await ground.the_same()
    if not has:
        return
    number = (await ground.sql.link.fetchval(numbers))[0]
    for damage in ("DROP INDEX {0}_hnsw", "ALTER TABLE {0} DROP COLUMN near", "DROP TABLE {0}"):
        await ground.sql.link.execute(damage.format(f"{ground.schema}.near_{number}"))
        assert await ground.the_same() == found
        await ground.indexed()
        assert await ground.the_same() == found
        number = (await ground.sql.link.fetchval(numbers))[0]


async def test_an_index_whose_building_was_cut_off_is_built_anew(ground: Ground) -> None:
    if not await ground.indexed():
        return
    near = f"{ground.schema}.near_1"
    found = await ground.the_same()
    await ground.sql.link.execute(f"DROP INDEX {near}_hnsw")
    building = f"CREATE INDEX CONCURRENTLY near_1_hnsw ON {near} USING hnsw (near public.halfvec_ip_ops)"
    async with ground.store._core.db.connection() as holder, holder.transaction():
        await holder.execute(f"LOCK {near} IN ROW EXCLUSIVE MODE")
        await ground.sql.link.execute("SET statement_timeout = 200")
        with pytest.raises(asyncpg.QueryCanceledError):
            await ground.sql.link.execute(building)
    assert await ground.the_same() == found
    await ground.indexed()
    valid = f"SELECT indisvalid FROM pg_index WHERE indexrelid = '{near}_hnsw'::regclass"
    assert await ground.sql.link.fetchval(valid)
    assert await ground.the_same() == found


async def test_filling_while_facts_change_loses_none_of_them(ground: Ground) -> None:
    await ground.indexed()
    knowledge = ground.store.knowledge
    over = asyncio.Event()

    async def fill() -> None:
        upkeep = IndexUpkeep(ground.store._core)
        while not over.is_set():
            upkeep._look_at = 0.0
            await upkeep.tend()
            await asyncio.sleep(0.01)

    async def change() -> None:
        for fact in (await knowledge.list(limit=24)).items:
            match DICE.randrange(4):
                case 0:
                    await knowledge.supersede(fact.id, fact.text, embedding=somewhere())
                case 1:
                    await knowledge.delete(fact.id)
                case 2:
                    await knowledge.save(fact)
                case _:
                    await knowledge.add("more", embedding=somewhere())
            if DICE.randrange(4) == 0:
                await ground.the_same(limit=3)
        over.set()

    await asyncio.gather(fill(), change())
    await ground.the_same()


@pytest.mark.parametrize(
    ("server", "why"),
    [
        (Server(None, None, None, True), "no extension vector"),
        (Server(None, "0.8.6", None, False), "has not been created"),
        (Server("0.7.4", "0.8.6", "public", True), "no iterative scans"),
        (Server("0.8.0", None, "public", False), None),
        (Server("0.10", None, "public", False), None),
    ],
)
def test_why_pgvector_is_not_used(server: Server, why: str | None) -> None:
    assert (server.why_not is None) == (why is None)
    assert why is None or why in str(server.why_not)
