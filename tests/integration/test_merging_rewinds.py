"""A counter while KV goes back in time: no history that anybody holds counts less than it did, none twice (I1, I12;
flow rules 4 and F-wait; `model/merging/actors.py`)."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest
from kv_past import nobody_flushes, past

import cenote
from cenote.engine import hydrator, reader, watcher
from cenote.engine.core import Core
from cenote.model.merging import Actors
from cenote.store import Store
from cenote.testing import TestServers
from witness import demand, tables, toothed


def the_waiting(patch: pytest.MonkeyPatch) -> None:
    """Whoever is connected reads."""

    async def at_once(core: Core, left_ms: float) -> None: ...

    for user in (reader, hydrator, watcher):
        patch.setattr(user, "until_mended", at_once)


def the_new_name(patch: pytest.MonkeyPatch) -> None:
    """A process keeps its name at a key, whatever has become of what it wrote there."""

    def actor(self: Actors, place: Hashable, current: Any) -> str:
        return f"{self._process}.1"

    patch.setattr(Actors, "actor", actor)


async def count(store: Store, times: int) -> None:
    for _ in range(times):
        await store.agent("a").update("n", lambda n: n.increment(), default=cenote.PNCounter())


@toothed(the_waiting, the_new_name)
async def test_a_counter_of_which_kv_lost_its_tail_counts_on_from_what_sql_holds(
    cenote_servers: TestServers, tmp_path: Path
) -> None:
    """KV is put back to 4, SQL holds 10, a reader has a copy of 14. Counting goes on at 10, and the copy's 4 are still
    others than those that were counted since."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store, kv.open(flush__enabled=False) as other:
            for one in (store, other):
                await count(one, 2)
            kv.remember()
            for one in (store, other):
                await count(one, 3)
            await store.flush(10)
            async with nobody_flushes(store):
                for one in (store, other):
                    await count(one, 2)
                copy = await other.agent("a").get("n")
                assert copy.value == 14
                await kv.rewind(other, store)
                await count(other, 3)
            await count(store, 1)
            held = await store.agent("a").get("n")
            demand(held.value == 14, f"I1: 10 were in SQL, 4 were counted since, and {held.value} are there")
            held = (await store.agent("a").merge("n", copy)).value
            demand(held.value == 18, f"I12: {held.value} of the 18 that anybody has seen")
            await store.flush(20)
            async with tables(cenote_servers, store) as sql:
                row = await sql.value(store.agent("a"), "n")
                demand(row is not None and '"value": 18' in row, f"I1: SQL holds {row}")
