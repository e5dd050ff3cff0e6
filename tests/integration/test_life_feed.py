"""What is done with agents on purpose can be followed: each event once, in order, and nobody who writes pays for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import asyncpg
import pytest

import cenote
from cenote.engine.lifecycle import LifecycleEvent
from cenote.lifecycle import Event
from cenote.sql.lifecycle import LifecycleTable
from cenote.sql.pool import Database
from cenote.sql.transaction import Transaction
from cenote.store import Store
from cenote.testing import TestServers
from witness import another, demand, eventually, toothed


@asynccontextmanager
async def following(store: Store, agents: str, since: str | int | None) -> AsyncIterator[AsyncIterator[LifecycleEvent]]:
    async with aclosing(store.lifecycle_events(agents, since)) as feed:  # type: ignore[type-var]  # it is a generator
        yield feed


async def some(store: Store, count: int, since: str | int | None = 0, agents: str = "*") -> list[LifecycleEvent]:
    """The first so many."""
    found: list[LifecycleEvent] = []
    async with following(store, agents, since) as feed, asyncio.timeout(20):
        async for event in feed:
            found.append(event)
            if len(found) == count:
                break
    return found


async def test_it_is_followed_as_it_happens(cenote_store: Store) -> None:
    scout, base = cenote_store.agent("scout"), cenote_store.agent("base")
    await scout.put("k", 1)
    await scout.checkpoint()
    async with following(cenote_store, "*", None) as feed, another(cenote_store) as other, asyncio.timeout(20):
        waiting = asyncio.ensure_future(anext(feed))
        await asyncio.sleep(0.2)
        await other.agent("scout").flush(20)
        first = await waiting
        assert (first.event, first.agent, first.details) == (Event.FLUSH, "scout", {})
        assert (await anext(feed)).event is Event.FLUSHED
    await base.put("k", 1)
    await base.flush(20)
    assert [one.event for one in await some(cenote_store, 3)] == [Event.CHECKPOINT, Event.FLUSH, Event.FLUSHED]
    assert [(one.agent, one.event) for one in await some(cenote_store, 2, agents="b*")] == [
        ("base", Event.FLUSH), ("base", Event.FLUSHED),
    ]  # fmt: skip
    seen = (await some(cenote_store, 2))[-1]
    rest = await some(cenote_store, 3, seen.position)
    assert [(one.agent, one.event) for one in rest] == [
        ("scout", Event.FLUSHED), ("base", Event.FLUSH), ("base", Event.FLUSHED),
    ]  # fmt: skip
    assert rest[-1] == (await base.lifecycle_events(1))[0]


async def test_what_cannot_be_told_is_said(cenote_servers: TestServers, cenote_store: Store) -> None:
    for bad in ("yesterday", 7, "1.01", True):
        with pytest.raises(cenote.RejectedError):
            await some(cenote_store, 1, bad)
    await cenote_store.agent("a").flush(20)
    last = (await some(cenote_store, 2))[-1]
    table = cenote_store._machines.lifecycle.table
    assert await table.forget(-1, 100) == 1  # the last one stays
    assert await some(cenote_store, 1, 0) == [last]
    number, _, at_us = last.position.partition(".")
    with pytest.raises(cenote.ExpiredError):
        await some(cenote_store, 1, f"{number}.{int(at_us) + 1}")  # another event of that number: PostgreSQL went back


def the_fence(patch: pytest.MonkeyPatch) -> None:
    """What can be seen is shown, whoever is still on his way with a lower number."""

    async def nobody(self: LifecycleTable, tx: Transaction) -> None:
        return None

    patch.setattr(LifecycleTable, "_fence", nobody)


@toothed(the_fence)
async def test_a_number_that_is_committed_late_is_not_passed_over(
    cenote_servers: TestServers, cenote_store: Store
) -> None:
    agent = cenote_store.agent("a")
    await agent.put("k", 1)
    await agent.flush(20)
    after = (await some(cenote_store, 2))[-1].position
    name = cenote_store._core.db.names.schema("agents")
    slow = await asyncpg.connect(cenote_servers.sql_dsn)
    try:
        await slow.execute("BEGIN")
        await slow.execute(
            f"INSERT INTO {name}.lifecycle_events (agent_id, event) VALUES ($1, 'checkpoint')", agent._agent.id
        )
        await agent._machines.lifecycle.record(agent._agent, Event.FORK)
        feed = asyncio.create_task(some(cenote_store, 2, after))
        await asyncio.sleep(0.6)
        await slow.execute("COMMIT")

        async def told() -> bool:
            return feed.done()

        try:
            await eventually(told, "an event was passed over")
        finally:
            feed.cancel()
        demand([one.event for one in await feed] == [Event.CHECKPOINT, Event.FORK], "events came out of order")
    finally:
        await slow.close()


async def test_neither_puts_nor_the_flush_in_the_background_ask(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a put and a flush ask of PostgreSQL is the same, whatever was done with the agent on purpose before."""
    asked: list[tuple[Database, str]] = []

    def counting(verb: str) -> None:
        plain = getattr(Database, verb)

        async def counted(self: Database, query: str, *given: object, **named: object) -> object:
            asked.append((self, query))
            return await plain(self, query, *given, **named)

        monkeypatch.setattr(Database, verb, counted)

    for verb in ("fetch", "fetchrow", "fetchval", "execute"):
        counting(verb)
    async with cenote.open(**cenote_servers.fresh()) as store, another(store) as writing:
        queries = store._core.db.queries
        of_lives = {text for name, text in queries.items() if name.startswith("lifecycle_")}
        agent = writing.agent("a")

        async def puts() -> tuple[int, int, int]:
            """Statements of the process that puts, of both about lives, and flushes that bring one put each."""
            await agent.put("k", "warm")
            await store.flush(20)
            asked.clear()
            for number in range(10):
                await agent.put("k", number)
                by_writer = sum(db is writing._core.db for db, _ in asked)
                await store.flush(20)
            told = [query for _, query in asked]
            return by_writer, sum(query in of_lives for query in told), told.count(queries["flush"])

        before = await puts()
        assert before == (0, 0, 10)
        await agent.flush(20)
        mark = await agent.checkpoint()
        await agent.hydrate()
        await agent.restore(mark)
        assert await puts() == before
