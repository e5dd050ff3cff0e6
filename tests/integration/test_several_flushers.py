"""`flush.active_max`: who flushes beside the primary follows it (I1, I3, I8; flow rules 3, 4, 19)."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from kv_past import again, past

import cenote
from cenote.engine import seconds
from cenote.engine.core import Core
from cenote.engine.lag import LagWindow
from cenote.engine.lease import Board
from cenote.engine.seconds import Seconds
from cenote.engine.slots import beside
from cenote.kv.message import Message
from cenote.sql.loader import Queries
from cenote.store import Store
from cenote.testing import TestServers
from witness import demand, reached, tables, toothed

TWO: dict[str, Any] = {"flush__active_max": 2, "flush__drain_ms": 0}
WHILE_S = 2.0  # longer than a slot that is free stays so


# --- the rules, taken out -----------------------------------------------------------------------------------


def the_announcement(patch: pytest.MonkeyPatch) -> None:
    """Whoever finds a durable of this server start uses it."""

    def may_follow(core: Core) -> bool:
        return core.link.connected and core.current_durable is not None

    patch.setattr(seconds, "may_follow", may_follow)


def the_guard(patch: pytest.MonkeyPatch) -> None:
    """A flush is committed whatever has begun since its batch was fetched."""
    plain, guard = Queries.__getitem__, "epoch = $1 AND incarnation = $2 FOR SHARE"
    always = "incarnation IS NOT NULL AND ($1::bigint, $2::text) IS NOT NULL FOR SHARE"
    patch.setattr(Queries, "__getitem__", lambda self, name: plain(self, name).replace(guard, always))


# --- two of them --------------------------------------------------------------------------------------------


async def test_i8_two_flush_and_are_told_of_as_one(cenote_servers: TestServers) -> None:
    """Both have rows of their own, numbers are added up, nothing is called clean while the second holds an entry; when
    the primary leaves, the second takes its place and gives its own back."""
    settings = cenote_servers.fresh(**TWO)
    async with cenote.open(**settings) as first, cenote.open(**settings, flush__enabled=False) as looker:
        await first.agent("a").put("k", 0, durability="sql")
        async with cenote.open(**settings) as second:
            await both_flush(first, second)
            await second.agent("b").put("k", 1, durability="sql")

            async def summed() -> bool:
                return (await looker.stats()).flushed == first._core.counts.flushed + second._core.counts.flushed

            await reached(summed, "the sum of what both have flushed")
            assert (await looker.stats()).flusher == first._core.writer_id
            await nothing_is_clean_while_held(first, second)
            await first.aclose()
            await reached(lambda: primary(looker, second), "the second in the primary's place")
            await second.agent("c").put("k", 2, durability="sql")
            assert not [one for one in await slot_boards(looker) if one.holder], "a primary holds a second slot"
            await second.flush(10)


async def nothing_is_clean_while_held(first: Store, second: Store) -> None:
    """A statement of the second's comes to no end; what it has in hand is not in SQL, though all the primary has is."""
    frozen, _ = freeze_next_flush(second)
    await first.flush(10)
    numbers = iter(range(10_000))

    async def held() -> bool:
        await first.agent("held").put(f"k{next(numbers)}", 1)
        return frozen.is_set()

    await reached(held, "entries in the second's hand")
    held_at_ms = first._core.link.server_now_ms()
    for _ in range(4):
        await asyncio.sleep(0.4)
        board = await first._machines.lease.read()
        assert board is not None
        demand(board.clean_ms <= held_at_ms, "I8: called clean while a second flusher holds entries")


@pytest.mark.judge
async def test_one_of_one_beside_one_of_three(cenote_servers: TestServers) -> None:
    """Processes that were told different numbers: nothing but the number of those who flush depends on it."""
    alone = cenote_servers.fresh(flush__drain_ms=0)
    async with cenote.open(**alone) as first:
        await first.agent("a").put("k", 0, durability="sql")
        async with cenote.open(**alone, flush__active_max=3) as second:
            await both_flush(first, second)
            await first.aclose()
            await second.agent("a").put("k", 1, durability="sql")
            async with cenote.open(**alone) as third:
                await third.agent("a").put("k", 2, durability="sql")
                await third.flush(10)
                assert third._core.counts.flushed == 0


# --- after a start of the KV server -------------------------------------------------------------------------


@toothed(the_announcement)
async def test_f_gen_no_second_flushes_before_the_comparison(cenote_servers: TestServers, tmp_path: Path) -> None:
    """The primary has named this start's durable, and compares for a while; the second has to wait."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open(**TWO) as first:
            await first.agent("a").put("k", 0, durability="sql")
            go_on, live = asyncio.Event(), first._core.live

            async def slowly(*arguments: Any) -> AsyncIterator[Message]:
                await go_on.wait()
                async for message in live(*arguments):
                    yield message

            async with kv.open(**TWO, flush__enabled=False) as second, only_beside(second):
                await reached(lambda: second._core.durability.hurry, "a second flusher")
                first._core.live = slowly  # type: ignore[method-assign]  # one store's, not the class's
                generations = [one._core.link.generation for one in (first, second)]
                await asyncio.to_thread(kv.server.kill)
                kv.server.start()
                for one, generation in zip((first, second), generations, strict=True):
                    await again(one, generation)
                await reached(lambda: second._core.current_durable, "the durable of this start")
                before = second._core.counts.delivered
                until = time.monotonic() + WHILE_S
                while time.monotonic() < until:
                    await second.agent("b").put("k", 1)
                    demand(second._core.counts.delivered == before, "F-gen: flushed before KV was compared with SQL")
                    await asyncio.sleep(0.05)
                go_on.set()
                await both_flush(first, second)


@pytest.mark.judge
@toothed(the_guard)
async def test_a_frozen_second_commits_nothing_of_a_lost_tail(cenote_servers: TestServers, tmp_path: Path) -> None:
    """F-inc: its statement, with an entry that the stream has lost, arrives after the next epoch has begun."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open(**TWO) as first, kv.open(**TWO) as second, tables(cenote_servers, first) as sql:
            await both_flush(first, second)
            await first.flush(10)
            kv.remember()
            frozen, thaw = freeze_next_flush(second)
            agent, numbers = first.agent("lost"), iter(range(10_000))

            async def held() -> bool:
                await agent.put(f"k{next(numbers)}", "lost")
                return frozen.is_set()

            await reached(held, "a batch of the lost tail in the second's hand")
            await kv.rewind(first, second)
            await first.agent("a").put("new", 1)
            await first.flush(20)
            count = f"SELECT count(*) FROM {sql.schema}.state WHERE agent_id = $1"
            before = await sql.link.fetchval(count, agent.id)
            await thaw()
            demand(await sql.link.fetchval(count, agent.id) == before, "I1, I3: a lost tail is in SQL")
            await both_flush(first, second)


# --- within -------------------------------------------------------------------------------------------------


async def both_flush(one: Store, other: Store) -> None:
    """Write until both have flushed rows from now on."""
    before = [store._core.counts.flushed for store in (one, other)]
    number = 0

    async def flushed() -> bool:
        nonlocal number
        number += 1
        await one.agent("both").put_many({f"k{key}": number for key in range(20)})
        return all(store._core.counts.flushed > was for store, was in zip((one, other), before, strict=True))

    await reached(flushed, "rows flushed by both")


@asynccontextmanager
async def only_beside(store: Store) -> AsyncIterator[None]:
    """Flushes beside the primary, and never comes to be the primary, however long that takes to renew its lease."""
    machines = store._machines
    flushers = Seconds(machines.core, machines.board, LagWindow(30, 200))
    flushers.start()
    try:
        yield
    finally:
        await flushers.stop()


async def slot_boards(store: Store) -> list[Board]:
    """Of those beside the primary."""
    return await beside(store._core.link, store._core.names, 3)


async def primary(looker: Store, store: Store) -> bool:
    """Whether this store's process holds the first lease."""
    board = await looker._machines.lease.read()
    return board is not None and board.holder == store._core.writer_id


def freeze_next_flush(store: Store) -> tuple[asyncio.Event, Callable[[], Any]]:
    """The next statement of this store's flusher stays in its hands; the second result sends it off after all."""
    frozen, table = asyncio.Event(), store._core.table
    held: list[Any] = []
    plain = table.flush

    async def flush(*arguments: Any, **options: Any) -> Any:
        if frozen.is_set():
            return await plain(*arguments, **options)
        held.append((arguments, options))
        frozen.set()
        return await asyncio.Event().wait()  # until it is cancelled with its tenure: the process notices nothing

    table.flush = flush  # type: ignore[method-assign]  # one store's, not the class's

    def thaw() -> Any:
        arguments, options = held[0]
        return plain(*arguments, **options)

    return frozen, thaw
