"""A cut is of one moment, whatever happens while it is made: each order of events that would tear it (I9; flow rule 13,
decision 0007). Two keys whose sum never changes are moved between in atomic batches."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from cenote import limits
from cenote.agent import AgentState
from cenote.engine import cut
from cenote.engine.checkpoint import Checkpoint
from cenote.engine.cut import Cut
from cenote.kv.atomic import MEMBER, is_last
from cenote.kv.message import Message
from cenote.kv.stream import StateStream
from cenote.model import value as values
from cenote.sql.loader import Queries
from cenote.sql.rows import Guard
from cenote.store import Store
from witness import at, demand, evict_all, toothed

TOTAL = 100


async def held(agent: AgentState, mark: Checkpoint) -> dict[str, Any]:
    """What a checkpoint holds."""
    pages = [page async for page in agent._machines.checkpoints.fold(agent._agent, mark.seq)]
    return {kept.key: values.decode(kept.codec, kept.body) for page in pages for kept in page}


async def demand_whole(agent: AgentState, mark: Checkpoint) -> None:
    found = await held(agent, mark)
    demand(sum(found.values()) == TOTAL, f"I9: a checkpoint is torn: {found}")


async def move(agent: AgentState, amount: int) -> None:
    """From `a` to `b`, both or none."""
    await agent.put_many({"a": TOTAL - amount, "b": amount}, atomic=True)


# --- the rules, taken out -----------------------------------------------------------------------------------


def the_end_of_batch(patch: pytest.MonkeyPatch) -> None:
    """A cut ends wherever the server met the end."""
    patch.setattr(Cut, "_within_a_batch", lambda self: False)


def the_tail(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks at what came after SQL was asked."""

    async def nothing(self: Cut) -> None:
        pass

    patch.setattr(Cut, "_tail", nothing)


def the_age_bound(patch: pytest.MonkeyPatch) -> None:
    """The next look at the end may come at any time."""
    patch.setattr(limits, "CHECKPOINT_TAIL_MS_MAX", 10**9)


def the_rows(patch: pytest.MonkeyPatch) -> None:
    """SQL is not asked."""

    async def nothing(self: Cut, share: Any) -> None:
        pass

    patch.setattr(Cut, "_rows", nothing)


def the_newest(patch: pytest.MonkeyPatch) -> None:
    """What the stream has shown is not looked for in SQL."""
    patch.setattr(cut.Share, "wants", lambda self, row: row.key not in self._known)


def the_gc_floor(patch: pytest.MonkeyPatch) -> None:
    """A delta is added whatever was collected."""
    plain = Queries.__getitem__
    patch.setattr(
        Queries, "__getitem__",
        lambda self, name: plain(self, name).replace("<= ($8, $25::bigint)", "<= ($8, $25::bigint + 1000000)"),
    )  # fmt: skip


# --- the orders of events -----------------------------------------------------------------------------------


@contextmanager
def listings(wrapped: Any) -> Any:
    """Every listing of a stream goes through `wrapped(listing)`."""
    plain = StateStream.live
    StateStream.live = lambda *args: wrapped(plain(*args))  # type: ignore[method-assign, assignment]  # what the test takes the place of
    try:
        yield
    finally:
        StateStream.live = plain  # type: ignore[method-assign]  # put back


@toothed(the_end_of_batch)
async def test_a_cut_does_not_end_within_a_batch(cenote_store: Store) -> None:
    agent = cenote_store.agent("bank")
    await move(agent, 0)
    await agent.checkpoint()
    await move(agent, 30)
    met: list[int] = []

    async def as_if_stored_one_by_one(listing: AsyncIterator[Message]) -> AsyncIterator[Message]:
        async for message in listing:
            yield message
            if not met and message.header.find(MEMBER) >= 0 and not is_last(message.header):
                met.append(message.sequence)
                return  # the server has met its end: the next member comes a moment later

    with listings(as_if_stored_one_by_one):
        mark = await agent.checkpoint()
    assert met
    await demand_whole(agent, mark)


async def _evicted(store: Store) -> AgentState:
    agent = store.agent("bank")
    await move(agent, 0)
    await agent.put_many({f"c{n}": 0 for n in range(3)})
    await store.flush(20)
    await evict_all(store)
    return agent


@contextmanager
def pages_of_one(limit: str) -> Any:
    """A tier tells a cut one key at a time."""
    plain = getattr(limits, limit)
    setattr(limits, limit, 1)
    try:
        yield
    finally:
        setattr(limits, limit, plain)


@toothed(the_tail)
async def test_what_is_written_between_two_questions_to_sql_is_in_the_cut(cenote_store: Store) -> None:
    agent = await _evicted(cenote_store)

    async def moved() -> None:  # `a` was read already, `b` was not
        await move(agent, 30)
        await cenote_store.flush(20)

    with pages_of_one("CHECKPOINT_ROWS_PAGE"), at(checkpoint_rows=moved) as crossed:
        mark = await agent.checkpoint()
    assert crossed["checkpoint.rows"] > 2
    await demand_whole(agent, mark)


@toothed(the_age_bound)
async def test_a_process_that_was_stopped_cuts_again(cenote_store: Store) -> None:
    agent = await _evicted(cenote_store)
    stopped_s = [0.0]
    cut.time = SimpleNamespace(monotonic=lambda: time.monotonic() + stopped_s[0])  # type: ignore[assignment]  # a clock that stands still

    async def moved() -> None:
        await move(agent, 30)
        await cenote_store.flush(20)
        await evict_all(cenote_store)  # as is right after `EVICT_AGE_MIN_MS`, …
        stopped_s[0] += limits.EVICT_AGE_MIN_MS / 1000  # … for which this process was stopped

    try:
        with pages_of_one("CHECKPOINT_ROWS_PAGE"), at(checkpoint_rows=moved):
            mark = await agent.checkpoint()
    finally:
        cut.time = time
    await demand_whole(agent, mark)


@toothed(the_rows, the_newest)
async def test_what_leaves_kv_ahead_of_the_listing_is_in_the_cut(cenote_store: Store) -> None:
    agent = cenote_store.agent("bank")
    await move(agent, 40)
    begun: list[int] = []

    async def slow(listing: AsyncIterator[Message]) -> AsyncIterator[Message]:
        async for message in listing:
            yield message
            if not begun:
                begun.append(message.sequence)
                await agent.put("b", 30)  # ahead of the listing, which would meet it
                await agent.put("a", TOTAL - 30)
                await cenote_store.flush(20)
                await evict_all(cenote_store)

    with pages_of_one("SCAN_PAGE_KEYS"), listings(slow):
        mark = await agent.checkpoint()
    assert begun
    await demand_whole(agent, mark)


@toothed(the_gc_floor)
async def test_a_delta_does_not_miss_a_tombstone_that_was_collected(cenote_store: Store) -> None:
    agent, core = cenote_store.agent("bank"), cenote_store._core
    await agent.put_many({"a": TOTAL, "b": 0, "gone": 1})
    await agent.checkpoint()
    await agent.delete("gone")
    await cenote_store.flush(20)
    await evict_all(cenote_store)
    async with cenote_store._core.db.connection() as con:
        schema = cenote_store.config.names.schema("agents")
        await con.execute(f"UPDATE {schema}.state SET updated_at = now() - interval '2 days' WHERE deleted")
    floor = (await core.stream.info()).last_seq
    ripe = await core.table.tombstones(86_400, core.epochs.newest, floor, (agent.id, ""), 10)
    assert await core.table.collect(Guard(core.epochs.newest, core.incarnation), ripe) == 1
    agent._machines.checkpoints._recent.clear()  # as another process would
    await demand_whole(agent, await agent.checkpoint())


async def test_two_that_save_at_once_lose_nothing(cenote_store: Store) -> None:
    agent = cenote_store.agent("bank")
    await move(agent, 10)
    marks = await asyncio.gather(*(agent.checkpoint(str(n)) for n in range(8)))
    assert sorted(mark.seq for mark in marks) == list(range(1, 9))
    for mark in marks:
        await demand_whole(agent, mark)


async def test_all_deltas_of_a_long_chain_fold_and_bases_come_in_time(cenote_store: Store) -> None:
    agent = cenote_store.agent("bank")
    now = {f"k{n}": 0 for n in range(50)}
    await agent.put_many(now)
    pairs = []
    for n in range(limits.CHECKPOINT_DELTAS_MAX + 3):
        now |= {f"k{n}": n + 1}
        await agent.put(f"k{n}", n + 1)
        pairs.append((await agent.checkpoint(), dict(now)))
    assert [mark.seq for mark, _ in pairs if mark.parent is None] == [1, limits.CHECKPOINT_DELTAS_MAX + 1]
    for mark, was in pairs:
        assert await held(agent, mark) == was
