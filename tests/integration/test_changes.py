"""The change feed: what reached SQL, in the order of the commits, without a silent gap (flow rule 25)."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest

import cenote
from cenote.engine.changes import Change
from cenote.engine.receipt import Receipt
from cenote.model import entry, value
from cenote.sql.loader import Queries
from cenote.store import Store
from cenote.testing import TestServers
from witness import another, demand, eventually, evict_all, reached, toothed


async def take(store: Store, count: int, since: str | int | None) -> list[Change]:
    """The next changes."""
    found: list[Change] = []
    async with asyncio.timeout(20):
        async for change in store.changes(since):
            found.append(change)
            if len(found) == count:
                break
    return found


async def _until_quiet(store: Store, since: str) -> AsyncIterator[Change]:
    """The changes up to a write that is made now."""
    last = await store.agent("a").put("last", 1, durability="sql")
    async with asyncio.timeout(20):
        async for change in store.changes(since):
            if change.entry.version == last.version:
                return
            yield change


def told(changes: list[Change]) -> dict[tuple[str, str], tuple[str, object]]:
    """What a follower would know after these changes."""
    return {(one.entry.agent, one.entry.key): (one.entry.change, one.entry.value) for one in changes}


async def test_changes_are_told_in_order_and_go_on_where_one_stopped(cenote_store: Store) -> None:
    scout, other = cenote_store.agent("scout"), cenote_store.agent(uuid4())
    receipts: list[Receipt] = []
    for number in range(5):
        receipts.append(await scout.put(f"k{number}", {"n": number}, durability="sql"))
    first = await take(cenote_store, 5, 0)
    assert [one.entry.key for one in first] == [f"k{number}" for number in range(5)]
    assert [one.entry.version for one in first] == [receipt.version for receipt in receipts]
    assert first[0].entry.value == {"n": 0}
    assert first[0].entry.agent == "scout"
    assert first[0].entry.tier is cenote.Tier.RELATIONAL_DB
    assert [one.committed_at for one in first] == sorted(one.committed_at for one in first)
    await scout.delete("k0")
    await other.put("mine", "x" * 700_000, durability="sql")  # a reference to a blob
    await cenote_store.flush(20)
    rest = await take(cenote_store, 2, first[-1].position)
    assert told(rest) == {("scout", "k0"): ("delete", None), (str(other.id), "mine"): ("put", "x" * 700_000)}
    assert told(await take(cenote_store, 4, first[2].position))[("scout", "k3")] == ("put", {"n": 3})


async def test_a_feed_from_now_tells_what_comes_and_no_copies(cenote_store: Store) -> None:
    agent = cenote_store.agent("a")
    await agent.put("before", 1, durability="sql")
    follower = asyncio.create_task(take(cenote_store, 2, None))
    await asyncio.sleep(0.2)  # it has begun; if not, "first" would be its second change and the test fails
    assert await evict_all(cenote_store) >= 1
    assert await agent.get("before") == 1  # hydrated: a copy, and no change
    await agent.put("first", 1, durability="sql")
    await agent.put("second", 2, ttl=timedelta(hours=1), durability="sql")
    assert [one.entry.key for one in await follower] == ["first", "second"]


@pytest.mark.parametrize("since", ["", "1", "x.y", "1.2.3", -1, 7, True])
async def test_what_is_no_position_is_refused(since: str | int, cenote_store: Store) -> None:
    with pytest.raises(cenote.RejectedError):
        await take(cenote_store, 1, since)


async def test_a_position_that_sql_never_had_is_expired(cenote_store: Store) -> None:
    await cenote_store.agent("a").put("k", 1, durability="sql")
    position = (await take(cenote_store, 1, 0))[0].position
    number, _, moment = position.partition(".")
    for wrong in (f"{number}.{int(moment) + 1}", f"{int(number) + 50}.{moment}"):
        with pytest.raises(cenote.ExpiredError, match="since=0"):
            await take(cenote_store, 1, wrong)


def the_commit_of_a_retry(patch: pytest.MonkeyPatch) -> None:
    """A dead letter's row is changed past the log."""
    plain, numbered = Queries.__getitem__, "SELECT true, 1, clock_timestamp() WHERE EXISTS (SELECT FROM mended)"
    past = numbered.replace("EXISTS (SELECT FROM mended)", "false")
    patch.setattr(Queries, "__getitem__", lambda self, name: plain(self, name).replace(numbered, past))


@toothed(the_commit_of_a_retry)
async def test_a_dead_letter_that_is_retried_is_a_change(cenote_servers: TestServers) -> None:
    """Flow rules 14 and 25: what SQL queries show changes with it, so who follows the feed must be told."""
    async with cenote.open(**cenote_servers.fresh(flush__drain_ms=0)) as store:
        agent, table = store.agent("a"), store._core.table
        header = entry.header("j", "foreign.1", None, None)
        await store._core.stream.publish(agent._target("k").wire, header, b'"a\\u0000b"', 5_000)
        await reached(lambda: table.dead_letters(0, 1), "the quarantine")
        (quarantined,) = await take(store, 1, 0)
        (letter,) = await table.dead_letters(0, 10)
        assert await table.retry_dead_letter(letter.id, *value.json_text(*value.from_sql(None, letter.raw)))
        following = [one async for one in _until_quiet(store, quarantined.position)]
        demand([one.entry.key for one in following] == ["k"], f"I4: the feed lacks a retried row: {following}")
        assert following[0].entry.value == quarantined.entry.value == "a\0b"
        assert following[0].entry.version == quarantined.entry.version
        assert not await table.retry_dead_letter(letter.id, "1", None)
        assert [one.entry.key for one in await take(store, 1, following[0].position)] == ["last"]


async def test_a_feed_ends_with_its_store(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(flush__drain_ms=0)) as store:
        async with another(store) as other:
            follower = asyncio.create_task(take(other, 1, None))
            await asyncio.sleep(0.2)  # it waits
        assert await follower == []


async def test_the_flusher_keeps_the_log_short(cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cenote.limits.PRUNE_LOOKS", 1)
    async with cenote.open(**cenote_servers.fresh(flush__drain_ms=0, flush__changes_s=0.1)) as store:
        for number in range(4):
            await store.agent("a").put("k", number, durability="sql")

        async def short() -> bool:
            return len(await store._core.table.commits(None, 100) or []) == 1

        await eventually(short, "I15: the log of commits has no bound")


def test_the_blocking_twin(cenote_servers: TestServers) -> None:
    with cenote.blocking.open(**cenote_servers.fresh(flush__drain_ms=0)) as store:
        store.agent("a").put("k", 1, durability="sql")
        changes = store.changes(since=0)
        assert next(changes).entry.value == 1
        changes.close()
