"""Three processes whose wall clocks disagree by ten seconds: nothing that was acknowledged later is dropped (S05), and
of two creators one is told that it came second (S17). Flow rules 6, 16 and 19; failure class C."""

import asyncio
import functools
import json
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from itertools import permutations
from typing import Any, NamedTuple

import pytest
from skewed_user import AGENT, LIBRARIES, Skewed, skewed

import cenote
from cenote import Clocked, HybridClock, Side
from cenote.store import Store
from cenote.testing import TestServers
from witness import demand, eventually, tables

pytestmark = [
    pytest.mark.judge,
    pytest.mark.skipif(not LIBRARIES, reason="libfaketime is not installed"),
]

SKEWS = {"ahead": 5, "behind": -5, "right": 0}
ORDERS = list(permutations(SKEWS))


class Scene(NamedTuple):
    store: Store
    servers: TestServers
    users: dict[str, Skewed]

    async def told(self, name: str, do: str, key: str, value: Any = None) -> Any:
        """One does something, and is answered."""
        return await asyncio.to_thread(self.users[name].ask, do, key, value)

    async def everybody_reads(self, key: str, value: Any) -> None:
        for name in self.users:

            async def reads(name: str = name) -> bool:
                return bool(await self.told(name, "get", key) == value)

            await eventually(reads, f"S05: {name} never reads {value!r}, the last write of {key!r}")


@pytest.fixture
async def scene(cenote_servers: TestServers) -> AsyncIterator[Scene]:
    settings = cenote_servers.fresh(flush__drain_ms=0)
    with ExitStack() as stack:
        async with cenote.open(**settings) as store:
            users = {
                name: stack.enter_context(skewed(settings | {"flush__enabled": False}, name, by_s))
                for name, by_s in SKEWS.items()
            }
            for name, by_s in SKEWS.items():
                shown = await asyncio.to_thread(users[name].ask, "time")
                assert abs(shown - time.time() - by_s) < 2, f"the clock of {name} is not wrong by {by_s} s"
            yield Scene(store, cenote_servers, users)
            await asyncio.to_thread(stack.close)


async def test_no_later_put_is_dropped(scene: Scene) -> None:
    for n, order in enumerate(ORDERS):
        versions = [await scene.told(name, "put", f"k{n}", [name, n]) for name in order]
        demand(versions == sorted(versions, key=cenote.Version.parse), f"S05: versions run backwards: {versions}")
        await scene.everybody_reads(f"k{n}", [order[-1], n])
    await scene.store.flush(20)
    async with tables(scene.servers, scene.store) as sql:
        for n, order in enumerate(ORDERS):
            row = json.loads(await sql.value(scene.store.agent(AGENT), f"k{n}") or "null")
            demand(row == [order[-1], n], f"S05: SQL holds {row}, and {order[-1]} wrote last")


async def test_the_newest_wall_time_would_drop_later_puts(scene: Scene) -> None:
    """What the tests here see: the specification's rule (3.2), on the same processes."""
    dropped = 0
    for n, order in enumerate(ORDERS):
        for name in order:
            await scene.told(name, "put if newer", f"k{n}", name)
        stands = await scene.store.agent(AGENT).get(f"k{n}")
        dropped += stands["value"] != order[-1]
    assert dropped == sum(order[-1] != "ahead" for order in ORDERS)


async def test_of_three_creators_one_succeeds_and_two_are_told(scene: Scene) -> None:
    for n in range(30):
        for name, user in scene.users.items():
            user.tell("create", f"k{n}", name)
        answers = {name: await asyncio.to_thread(user.heard) for name, user in scene.users.items()}
        won = [name for name, version in answers.items() if version is not None]
        demand(len(won) == 1, f"S17: {won} have created {n}")
        demand(await scene.store.agent(AGENT).get(f"k{n}") == won[0], "S17: another value than the creator's stands")


@pytest.mark.parametrize("verb", ["put", "merge"])
async def test_who_has_seen_a_hybrid_clock_is_never_dropped_by_it(verb: str, scene: Scene) -> None:
    for n, order in enumerate(ORDERS):
        clocks: list[Any] = []
        for place, name in enumerate(order):
            if place:
                await scene.everybody_reads(f"k{n}", [order[place - 1], n])
            clocks.append(await scene.told(name, f"{verb} seen", f"k{n}", [name, n]))
        demand(clocks == sorted(clocks), f"S05: a clock that was seen is not exceeded: {clocks}")
        await scene.everybody_reads(f"k{n}", [order[-1], n])


@pytest.mark.parametrize("verb", ["put", "merge"])
async def test_writes_that_did_not_see_each_other_have_one_winner_and_the_others_are_logged(
    verb: str, scene: Scene
) -> None:
    sides: dict[str, list[Side]] = {}
    for n in range(12):
        for name, user in scene.users.items():
            user.tell(f"{verb} blind", f"k{n}", [name, n])
        clocks = {name: await asyncio.to_thread(user.heard) for name, user in scene.users.items()}
        sides[f"k{n}"] = [Side([name, n], clock=HybridClock.from_json(clock)) for name, clock in clocks.items()]
    discarded: dict[str, list[Any]] = {}
    for one in await scene.store.conflicts(limit=1_000):
        discarded.setdefault(one.key, []).extend(getattr(one, side) for side in one.discarded)
    for key, three in sides.items():
        winners = {
            json.dumps(functools.reduce(lambda one, other: cenote.resolve(one, other, "lww").side, order).value)
            for order in permutations(three)
        }
        assert len(winners) == 1, "the pure replay has one winner in every order"
        await scene.everybody_reads(key, json.loads(winners.pop()))
        stands = await scene.store.agent(AGENT).get(key)
        for side in three:
            written = Clocked(side.value, side.clock)
            demand(stands == written or written in discarded[key], f"I6: {written} is gone, and nobody was told")
