"""A counter while PostgreSQL goes back in time: what KV still holds of it is merged with, and comes back (I1, I12; flow
rule 5)."""

from collections.abc import Iterator

import pytest
import rewinds
from rewinds import Arena
from test_sql_rewinds import the_mark_of_the_database

import cenote
from cenote.store import Store
from witness import demand, evict_all, in_kv, toothed

pytestmark = pytest.mark.judge


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with rewinds.arena(tmp_path_factory.mktemp("merging")) as servers:
        yield servers


async def count(store: Store, times: int) -> None:
    for _ in range(times):
        await store.agent("a").update("n", lambda n: n.increment(), default=cenote.PNCounter())


@toothed(the_mark_of_the_database)
@pytest.mark.parametrize("held_as", ["written", "copied"])
async def test_a_counter_whose_row_went_back_counts_on_from_what_kv_holds(held_as: str, arena: Arena) -> None:
    """SQL is put back from 10 to 4, while KV holds the write itself, or a copy that a read made of its row."""
    settings = arena.settings()
    async with cenote.open(**settings) as store, cenote.open(**settings, flush__enabled=False) as other:
        await count(store, 2)
        await count(other, 2)
        await store.flush(10)
        await arena.image_sql()
        await count(store, 3)
        await count(other, 3)
        await store.agent("a").put("later", 1)  # the last entry is never evicted
        await store.flush(10)
        if held_as == "copied":
            written = await in_kv(store.agent("a"), "n")
            assert await evict_all(store)
            async with cenote.open(**settings, flush__enabled=False) as reader:
                assert (await reader.agent("a").get("n")).value == 10
            copy = await in_kv(store.agent("a"), "n")
            assert written is not None
            assert copy is not None
            assert copy.sequence > written.sequence, "there is no copy"
        await arena.put_back_sql()
        assert (await other.agent("a").get("n")).value == 10
        await store.flush(20)
        await evict_all(store)
        async with cenote.open(**settings, flush__enabled=False) as fresh:
            held = await fresh.agent("a").get("n", cenote.PNCounter())
            demand(held.value == 10, f"I1: {held.value} of 10 that KV held are left")
            await count(fresh, 1)
            await count(store, 1)
            held = await store.agent("a").get("n")
            demand(held.value == 12, f"I12: {held.value} of 12")
