"""Values that merge, through the store's verbs: nothing that two writers did is lost in silence, and what cannot be
brought together is refused with both sides kept (I6, I12; flow rules 6, 7, 16)."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import cenote
from cenote import conflict
from cenote.conflict import CustomMerge, Strategy
from cenote.kv.stream import StateStream
from cenote.store import Store
from cenote.testing import TestServers
from witness import another, at, demand, evict_all, tables, toothed

ROUTED = {
    "state__resolvers": {"plan/*": "joined", "broken/*": "broken", "raising/*": "raising", "once/*": Strategy.REJECT},
}


def joined(current: Any, incoming: Any, ancestor: Any) -> Any:
    return {**current, **incoming}


def broken(current: Any, incoming: Any, ancestor: Any) -> Any:
    current["spoilt"] = incoming["spoilt"] = True
    return object()


def raising(current: Any, incoming: Any, ancestor: Any) -> Any:
    current["spoilt"] = incoming["spoilt"] = True
    raise ZeroDivisionError("nobody can do that")


@pytest.fixture(autouse=True)
def resolvers() -> Iterator[None]:
    """Three functions of somebody's own, registered for the time of a test."""
    for merge in (joined, broken, raising):
        conflict.register(merge.__name__, CustomMerge(merge))
    yield
    for merge in (joined, broken, raising):
        del conflict.RESOLVERS[merge.__name__]


# --- values that merge ------------------------------------------------------------------------------------


async def test_a_process_is_one_actor_whichever_verb_it_writes_with(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        agent, votes = store.agent("a"), cenote.PNCounter(1)
        receipt = await agent.put("votes", votes, if_version=0)
        with pytest.raises(cenote.ConflictError):
            await agent.put("votes", votes, if_version=0)
        for _ in range(3):
            votes.increment()
            receipt = await agent.put("votes", votes, if_version=receipt)
            votes.increment()
            receipt = (await agent.put_many({"votes": votes, "other": 1}))["votes"]
        stored = await agent.get("votes")
        assert (stored.value, votes.value) == (7, 7)
        assert len(stored.actors) == 1
        assert await agent.put("votes", 0, if_version=receipt)  # who names the version may write over it


async def test_a_clock_far_ahead_of_the_server_is_refused(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        agent, now_ms = store.agent("a"), store._core.now_ms()
        await agent.put("k", cenote.Clocked("soon", cenote.HybridClock(now_ms + 5_000, 0, "p")))
        for write in (agent.put, agent.merge):
            with pytest.raises(cenote.RejectedError, match="ahead"):
                await write("k", cenote.Clocked("never", cenote.HybridClock(now_ms + 3_600_000, 0, "p")))
        assert (await agent.get("k")).value == "soon"


async def test_a_put_of_a_merging_value_over_another_is_their_merge(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, another(store) as other:
        ours, theirs = cenote.PNCounter(3), cenote.PNCounter(4)
        mine, yours = store.agent("a"), other.agent("a")
        await mine.put("votes", ours)
        await yours.put("votes", theirs)
        assert (await yours.get("votes")).value == 7
        assert theirs.value == 7  # it has taken over what it met
        ours.increment()
        theirs.decrement(2)
        await asyncio.gather(mine.put("votes", ours), yours.put("votes", theirs))
        await mine.put("votes", ours)  # once more, nothing new: it counts once
        async with another(store) as fresh:
            assert (await fresh.agent("a").get("votes")).value == 6
        await store.flush(10)
        async with tables(cenote_servers, store) as sql:
            query = f"SELECT (value->'$pncounter'->>'value')::int FROM {sql.schema}.state WHERE key = 'votes'"
            assert await sql.link.fetchval(query) == 6


async def test_a_plain_put_over_a_value_that_merges_is_refused_unless_it_is_meant(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, another(store) as other:
        agent = store.agent("a")
        await agent.put("seen", cenote.ORSet({"x"}))
        await other.agent("a").get("seen")
        for process in (store, other):  # who wrote it, and who has read it
            with pytest.raises(cenote.RejectedError, match=r"ORSet.*list") as refused:
                await process.agent("a").put("seen", ["y"])
            assert refused.value.key == "seen"
            assert "replace=True" in (refused.value.hint or "")
        assert set(await agent.get("seen")) == {"x"}
        await agent.put("seen", ["y"], replace=True)
        assert await agent.get("seen") == ["y"]
        await agent.put("seen", ["z"])  # it is plain now
        await agent.put("seen", cenote.ORSet({"x"}), replace=True)
        await agent.update("seen", lambda seen: seen.add("w"))
        assert set(await agent.get("seen")) == {"w", "x"}


async def test_a_replaced_counter_counts_from_what_it_was_replaced_by(cenote_servers: TestServers) -> None:
    """The process's name in the old value is not used again for other numbers."""
    async with cenote.open(**cenote_servers.fresh()) as store, another(store) as other:
        agent = store.agent("a")
        for _ in range(3):
            await agent.update("n", lambda n: n.increment(), default=cenote.PNCounter())
        old = await agent.get("n")
        await agent.put("n", cenote.PNCounter(10), replace=True)
        await agent.update("n", lambda n: n.increment())
        assert (await agent.get("n")).value == 11
        await agent.delete("n")
        await agent.update("n", lambda n: n.increment(), default=cenote.PNCounter())
        merged = await other.agent("a").merge("n", old)  # a copy of an earlier life counts what it counted then
        assert merged.value.value == 4


@pytest.mark.parametrize("verb", ["put", "update", "merge", "plain merge"])
async def test_two_types_under_one_key_are_named(verb: str, cenote_store: Store) -> None:
    agent = cenote_store.agent("a")
    await agent.put("n", cenote.PNCounter(3))
    with pytest.raises(cenote.RejectedError) as refused:
        if verb == "put":
            await agent.put("n", cenote.ORSet({"x"}))
        elif verb == "update":
            await agent.update("n", lambda _: cenote.ORSet({"x"}))
        elif verb == "merge":
            await agent.merge("n", cenote.ORSet({"x"}))
        else:
            await agent.merge("n", {"x"})
    assert "PNCounter" in str(refused.value)
    assert ("set" if verb == "plain merge" else "ORSet") in str(refused.value)
    assert (await agent.get("n")).value == 3


async def test_a_change_that_raises_changes_nothing(cenote_store: Store) -> None:
    agent, ours = cenote_store.agent("a"), cenote.ORMap({"n": cenote.PNCounter(1)})
    await agent.put("board", ours)
    version = (await agent.entry("board")).version

    def change(board: cenote.ORMap) -> None:
        board["n"].increment(5)
        board["more"] = 1
        raise KeyError("no")

    with pytest.raises(KeyError):
        await agent.update("board", change)
    for board in (ours, await agent.get("board")):
        assert (board.keys(), board["n"].value) == (["n"], 1)
    assert (await agent.entry("board")).version == version
    empty = cenote.ORMap()
    with pytest.raises(KeyError):
        await agent.update("other", lambda board: board["n"].increment(), default=empty)
    assert not empty
    with pytest.raises(cenote.NotFoundError):
        await agent.entry("other")


async def test_the_default_of_an_update_stays_the_callers_own(cenote_store: Store) -> None:
    agent, empty = cenote_store.agent("a"), cenote.PNCounter()
    for key in ("a", "b", "a"):
        await agent.update(key, lambda n: n.increment(), default=empty)
    assert empty.value == 0
    assert [(await agent.get(key)).value for key in "ab"] == [2, 1]


# --- other resolvers --------------------------------------------------------------------------------------


async def test_a_resolver_is_chosen_by_the_pattern_of_the_key(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**ROUTED)) as store:
        agent = store.agent("a")
        for key in ("plan/1", "other"):
            await agent.put(key, {"a": 1, "b": 1})
            await agent.put(key, {"b": 2})
        assert await agent.get("plan/1") == {"a": 1, "b": 2}
        assert await agent.get("other") == {"b": 2}
        assert not await store.conflicts(key="other")
        (record,) = await store.conflicts(key="plan/1")
        assert (record.strategy, record.outcome, record.agent) == ("joined", "merged", "a")
        assert (record.current, record.incoming) == ({"a": 1, "b": 1}, {"b": 2})
        assert record.result == {"a": 1, "b": 2}
        await agent.put("plan/1", {"c": 3}, replace=True)
        assert await agent.get("plan/1") == {"c": 3}


@pytest.mark.parametrize(("name", "why"), [("broken", "cannot be stored"), ("raising", "ZeroDivisionError")])
async def test_a_merge_function_that_fails_writes_nothing_and_both_sides_are_kept(
    name: str, why: str, cenote_servers: TestServers
) -> None:
    async with cenote.open(**cenote_servers.fresh(**ROUTED)) as store:
        agent, key = store.agent("a"), f"{name}/1"
        receipt = await agent.put(key, {"a": 1})
        with pytest.raises(cenote.RejectedError, match=why) as refused:
            await agent.put(key, {"b": 2})
        assert refused.value.key == key
        entry = await agent.entry(key)
        assert (entry.value, entry.version) == ({"a": 1}, receipt.version)
        (record,) = await store.conflicts(key=key)
        assert (record.strategy, record.outcome, record.discarded) == (name, "refused", ())
        assert (record.current, record.incoming, record.result) == ({"a": 1}, {"b": 2}, None)
        assert why in (record.reason or "")


async def test_reject_tells_whoever_comes_second(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**ROUTED)) as store, another(store, **ROUTED) as other:
        outcomes = await asyncio.gather(
            *(one.agent("a").put("once/1", number) for number, one in enumerate((store, other))), return_exceptions=True
        )
        first = [number for number, one in enumerate(outcomes) if isinstance(one, cenote.Receipt)]
        assert len(first) == 1
        assert isinstance(outcomes[1 - first[0]], cenote.ConflictError)
        async with another(store) as fresh:
            assert await fresh.agent("a").get("once/1") == first[0]


async def test_siblings_that_nobody_can_decide_are_both_handed_over_and_kept(cenote_store: Store) -> None:
    agent = cenote_store.agent("a")
    mine = cenote.Clocked("mine", cenote.VectorClock({"a": 2, "b": 1}))
    yours = cenote.Clocked("yours", cenote.VectorClock({"a": 1, "b": 2}))
    await agent.put("k", mine)
    with pytest.raises(cenote.UnresolvedError) as unresolved:
        await agent.put("k", yours)
    assert (unresolved.value.current.value, unresolved.value.incoming.value) == ("mine", "yours")
    assert (await agent.get("k")).value == "mine"
    (record,) = await cenote_store.conflicts(key="k")
    assert (record.outcome, record.current.value, record.incoming.value) == ("unresolved", "mine", "yours")
    newer = cenote.Clocked("both", cenote.VectorClock({"a": 2, "b": 2}))
    await agent.put("k", newer)
    assert (await agent.get("k")).value == "both"


async def test_what_a_later_clock_displaces_stands_in_the_log(cenote_store: Store) -> None:
    agent = cenote_store.agent("a")
    early, late = (cenote.HybridClock(millis, 0, "p") for millis in (1_000, 2_000))
    await agent.put("k", cenote.Clocked("late", late))
    await agent.put("k", cenote.Clocked("early", early))  # it arrives later, and is older
    assert (await agent.get("k")).value == "late"
    (record,) = await cenote_store.conflicts(key="k")
    assert (record.outcome, record.discarded) == ("current", ("incoming",))
    assert record.incoming.value == "early"


async def test_an_unregistered_resolver_is_refused_by_name(cenote_store: Store) -> None:
    agent = cenote_store.agent("a")
    with pytest.raises(cenote.RejectedError, match="nobody"):
        await agent.merge("k", 1, strategy="nobody")
    with pytest.raises(cenote.NotFoundError):
        await agent.entry("k")


# --- races ------------------------------------------------------------------------------------------------


def the_comparison(patch: pytest.MonkeyPatch) -> None:
    """Whatever is there by then is overwritten."""
    plain = StateStream.publish_nowait

    def publish(self: StateStream, *arguments: Any) -> Any:
        return plain(self, *arguments[:4])

    patch.setattr(StateStream, "publish_nowait", publish)


def count(store: Store, by: int = 1) -> Any:
    return store.agent("a").update("n", lambda n: n.increment(by), default=cenote.PNCounter())


@toothed(the_comparison)
async def test_a_merge_that_was_overtaken_between_its_read_and_its_write_is_done_again(
    cenote_servers: TestServers,
) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, another(store) as other:
        await count(store)
        overtaking = False

        async def overtake() -> None:
            nonlocal overtaking
            if not overtaking:
                overtaking = True  # the other one crosses the point, too
                await count(other, 10)

        with at(write_compared=overtake):
            await count(store, 100)
        demand((await store.agent("a").get("n")).value == 111, "I12: an acknowledged change was overwritten")


@toothed(the_comparison)
@pytest.mark.parametrize("point", ["hydrate_read", "hydrate_installed", "write_compared"])
async def test_a_merge_into_what_only_sql_holds_meets_another_one(point: str, cenote_servers: TestServers) -> None:
    """The one hydrates the counter to build on it, while the other, who has done so before, goes on counting."""
    async with cenote.open(**cenote_servers.fresh()) as store, another(store) as other:
        await count(store, 5)
        assert await evict_all(store)
        with at(**{point: lambda: count(other, 10)}) as crossed:
            await asyncio.gather(count(store, 100), count(store, 1000), other.agent("a").get("n"))
        assert crossed
        await count(other)
        async with another(store) as fresh:
            demand((await fresh.agent("a").get("n")).value == 1116, "I10, I12: a merge is lost in a hydration")
        await store.flush(10)
        async with tables(cenote_servers, store) as sql:
            row = await sql.value(store.agent("a"), "n")
            demand(row is not None and '"value": 1116' in row, f"I1: SQL holds {row}")


async def test_many_tasks_of_one_process_take_turns_at_a_key(cenote_store: Store) -> None:
    """They need no second attempt."""
    before = cenote_store._core.counts.conflicts
    await asyncio.gather(*(count(cenote_store) for _ in range(100)))
    assert (await cenote_store.agent("a").get("n")).value == 100
    assert cenote_store._core.counts.conflicts == before


async def test_a_change_that_is_cancelled_is_done_once_or_not_at_all(cenote_store: Store) -> None:
    """The answer may be under way; whoever counts on must not reuse the numbers that may be stored."""
    acked = unknown = 0
    for number in range(40):
        call = asyncio.create_task(count(cenote_store))
        await asyncio.sleep(number % 8 / 4000)
        call.cancel()
        try:
            await call
            acked += 1
        except asyncio.CancelledError:
            unknown += 1
        await count(cenote_store)
        acked += 1
    total = (await cenote_store.agent("a").get("n")).value
    demand(acked <= total <= acked + unknown, f"I12: {total} of {acked} acked and {unknown} cancelled")
