"""Checkpoints that nobody asked for, and what is noted of those that somebody did."""

import asyncio

import pytest

import cenote
from cenote import limits
from cenote.engine.checkpoint import Checkpoint, Checkpoints
from cenote.engine.checkpoint_draft import Wish
from cenote.engine.policy import LABEL, Policy
from cenote.errors import UnavailableError
from cenote.lifecycle import Event
from cenote.model.key import AgentRef
from cenote.sql.policy import Due, DueTable
from cenote.store import Store
from cenote.testing import TestServers
from witness import another, at, demand, eventually, reached, toothed


async def made(store: Store, name: str) -> list[Checkpoint]:
    return list(await store.agent(name).checkpoints())


async def flushed(store: Store, *names: str) -> None:
    """All of it is in SQL, the agents' names included, which come just after."""
    await store.flush(20)
    schema = store._core.db.names.schema("agents")
    ids = [store.agent(name)._agent.id for name in names]

    async def known() -> bool:
        query = f"SELECT count(*) FROM {schema}.registry WHERE agent_id = ANY ($1::uuid[])"
        return await store._core.db.fetchval(query, ids) == len(ids)

    await reached(known, "the names")


def policies(store: Store, *, every_writes: int) -> Policy:
    """Of a store whose settings ask for none: it does what the test tells it to."""
    mine = Policy(store._core, store._machines.checkpoints)
    mine._writes = every_writes
    return mine


async def test_after_so_many_changes_and_only_then(cenote_store: Store) -> None:
    mine = policies(cenote_store, every_writes=3)
    await mine.tend()
    one, two = cenote_store.agent("one"), cenote_store.agent("two")
    for n in range(3):
        await one.put("k", n)
        await flushed(cenote_store, "one")
    await two.put("k", 0)
    await flushed(cenote_store, "two")
    await mine.tend()
    assert [found.label for found in await made(cenote_store, "one")] == [LABEL]
    assert await one.get("k", at=(await made(cenote_store, "one"))[0]) == 2
    assert await made(cenote_store, "two") == []
    await two.put_many({"a": 1, "b": 2})
    await flushed(cenote_store, "two")
    await mine.tend()
    await mine.tend()
    assert (len(await made(cenote_store, "one")), len(await made(cenote_store, "two"))) == (1, 1)


async def test_none_unless_the_settings_ask(cenote_store: Store) -> None:
    assert "checkpoint-policy" not in [chore.name for chore in cenote_store._core.chores]
    assert not Policy(cenote_store._core, cenote_store._machines.checkpoints).wanted


def the_count_in_sql(patch: pytest.MonkeyPatch) -> None:
    """Whoever takes over begins to count anew."""
    begin = DueTable.begin

    async def anew(self: DueTable) -> None:
        schema = self._db.names.schema("agents")
        await begin(self)
        await self._db.execute(f"DELETE FROM {schema}.checkpoint_due")
        await self._db.execute(
            f"UPDATE {schema}.checkpoint_due_head SET number = coalesce((SELECT number FROM {schema}.flush_head), 0)"
        )

    patch.setattr(DueTable, "begin", anew)


@toothed(the_count_in_sql)
async def test_whoever_takes_over_goes_on_counting(cenote_store: Store) -> None:
    first, second = policies(cenote_store, every_writes=2), policies(cenote_store, every_writes=2)
    await first.tend()
    agent = cenote_store.agent("a")
    for n in range(2):
        await agent.put("k", n)
        await flushed(cenote_store, "a")
        if n == 0:
            await first.tend()
    await second.tend()
    demand(len(await made(cenote_store, "a")) == 1, "a change was forgotten when another one took over")


def the_claim(patch: pytest.MonkeyPatch) -> None:
    """Nobody knows that somebody is at it."""
    claim = DueTable.claim

    async def shared(self: DueTable, writes: int | None, age_s: float | None, limit: int, for_s: float) -> list[Due]:
        return await claim(self, writes, age_s, limit, 0.0)

    patch.setattr(DueTable, "claim", shared)


@toothed(the_claim)
async def test_two_at_once_make_one(cenote_store: Store) -> None:
    async with another(cenote_store) as other:
        mine, theirs = policies(cenote_store, every_writes=1), policies(other, every_writes=1)
        await mine.tend()
        await cenote_store.agent("a").put("k", 1)
        await flushed(cenote_store, "a")
        with at(policy_claimed=theirs.tend):
            await mine.tend()
        demand(len(await made(cenote_store, "a")) == 1, "two processes made a checkpoint of the same changes")


async def test_one_that_fails_keeps_nobody_up_and_comes_again(
    cenote_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "POLICY_CLAIM_S", 0.3)
    mine = policies(cenote_store, every_writes=1)
    await mine.tend()
    for name in ("bad", "good"):
        await cenote_store.agent(name).put("k", 1)
        await flushed(cenote_store, name)
    create = Checkpoints.create

    async def failing(self: Checkpoints, agent: AgentRef, of: Wish) -> Checkpoint:
        if agent.text == "bad":
            raise UnavailableError("not now", tier="RELATIONAL_DB")
        return await create(self, agent, of)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "create", failing)
        await mine.tend()
    assert (len(await made(cenote_store, "bad")), len(await made(cenote_store, "good"))) == (0, 1)

    async def again() -> bool:
        await mine.tend()
        return bool(await made(cenote_store, "bad"))

    await reached(again, "the one that failed")
    assert len(await made(cenote_store, "good")) == 1


async def test_they_are_made_after_so_many_writes_and_after_so_long(cenote_servers: TestServers) -> None:
    settings = cenote_servers.fresh(checkpoints__every_writes=5, checkpoints__every_s=2, flush__interval_ms=1)
    async with cenote.open(**settings) as store:
        busy, seldom, never = (store.agent(name) for name in ("busy", "seldom", "never"))
        for number in range(6):
            await (await busy.put(f"k{number}", number)).durable()
        await seldom.put("k", "v")

        async def made() -> bool:
            return bool((await busy.checkpoints()).items and (await seldom.checkpoints()).items)

        await eventually(made, "no checkpoint was made by policy")
        (one,) = (await seldom.checkpoints()).items
        assert (one.label, await seldom.get("k", at=one)) == (LABEL, "v")
        assert not (await never.checkpoints()).items
        await asyncio.sleep(1.5)
        assert len((await seldom.checkpoints()).items) == 1  # nothing has changed since


async def test_what_is_done_on_purpose_is_noted(cenote_store: Store) -> None:
    agent = cenote_store.agent("scout")
    await agent.put("k", 1)
    mark = await agent.checkpoint()
    await agent.put("k", 2)
    await agent.restore(mark)
    fork = await agent.fork("twin", mark)
    events = [one.event for one in await agent.lifecycle_events()]
    assert events == [Event.RESTORE, Event.CHECKPOINT, Event.CHECKPOINT]
    (begun,) = await fork.lifecycle_events()
    assert (begun.event, begun.details["checkpoint"]) == (Event.FORK, str(mark.id))
