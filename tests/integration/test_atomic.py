"""Several keys, all or none: put_many(atomic=True), and who sees it when (I5, I12; flow rules 6, 16, 24). Some tests
run again without their rule; processes that die in the midst of it are in `tests/crash/test_atomic_batches.py`."""

import asyncio
import random
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

import cenote
from cenote import blocking
from cenote.engine.atomic import Atomic
from cenote.engine.coherence import Coherence
from cenote.engine.reader import Reader
from cenote.kv.errors import AnswerLost
from cenote.model.entry import Version
from cenote.model.merging import ORSet
from cenote.retry import Backoff
from cenote.store import Store
from cenote.testing import FaultProxy, TestServers
from witness import another, at, demand, eventually, evict_all, in_kv, reached, tables, toothed

QUICK = {"flush__drain_ms": 0}
SMALL = {"flush__batch_count_max": 10, "flush__threshold_count": 10}
KEYS = [f"k{number}" for number in range(20)]


# --- the rules, taken out -----------------------------------------------------------------------------------


def the_second_look(patch: pytest.MonkeyPatch) -> None:
    """What SQL shows is taken as it comes, however new it is."""
    patch.setattr(Reader, "_at_once", lambda self, view, position, strictly: True)


def the_end_of_a_batch_in_l1(patch: pytest.MonkeyPatch) -> None:
    """L1 is asked in the midst of a batch."""
    patch.setattr(Coherence, "within", property(lambda self: None, lambda self, value: None), raising=False)


def the_comparison_with_the_feed(patch: pytest.MonkeyPatch) -> None:
    """Copies from memory are shown together with whatever KV says."""
    patch.setattr(Reader, "_together", lambda self, copies, position, mixed: True)


def the_look_at_the_leader(patch: pytest.MonkeyPatch) -> None:
    """After a lost answer the batch is sent again."""

    async def settle(self: Atomic, batch: Any, backoff: Backoff, cause: AnswerLost) -> int:
        return await self._insist(batch, backoff)

    patch.setattr(Atomic, "_settle", settle)


# --- what is refused, and what is written -------------------------------------------------------------------


async def last_sequence(store: Store) -> int:
    return (await store._core.stream.info()).last_seq


async def test_it_is_all_or_nothing(cenote_servers: TestServers) -> None:
    """Conditions of evicted, absent and changed keys; one that does not hold leaves everything as it was."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as other:
        agent = store.agent("a")
        assert await agent.put_many({}, atomic=True) == {}
        first = await agent.put_many({"a": 1, "b": 2}, atomic=True)
        assert await evict_all(store) >= 2
        second = await agent.put_many({"a": 3, "b": 4, "c": 5}, atomic=True, if_version={"a": first["a"], "c": 0})
        sequences = [receipt.version.revision for receipt in second.values()]
        assert sequences == list(range(sequences[0], sequences[0] + 3))
        assert await other.agent("a").get_many(["a", "b", "c"]) == {"a": 3, "b": 4, "c": 5}

        await store.flush(20)
        assert await evict_all(store) >= 3
        before = await last_sequence(store)
        with pytest.raises(cenote.ConflictError, match=r"'b' should be absent but is at version .*; 'd' should be at"):
            wrong = {"a": second["a"], "b": 0, "d": Version(1, 3)}
            await agent.put_many({"a": 0, "b": 0, "d": 0, "e": 0}, atomic=True, if_version=wrong)
        assert [await in_kv(agent, key) for key in ("e",)] == [None]
        assert await other.agent("a").get_many(["a", "b", "c", "d", "e"]) == {"a": 3, "b": 4, "c": 5}
        assert await last_sequence(store) <= before + 6  # hydrations, and the mark that d exists nowhere

        entry = await agent.entry("a")
        third = await agent.put_many({"a": 6, "b": 7}, atomic=True, if_version={"a": entry, "b": second["b"].version})
        await asyncio.gather(*(receipt.durable(20) for receipt in third.values()))
        async with tables(cenote_servers, store) as sql:
            assert [await sql.value(agent, key) for key in ("a", "b", "c")] == ["6", "7", "5"]


async def test_what_cannot_be_written_in_a_batch_is_refused_before_anything_is_sent(
    cenote_servers: TestServers,
) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store:
        agent = store.agent("a")
        tags = await agent.update("tags", lambda held: held.add("x"), default=ORSet())
        before = await last_sequence(store)
        for items, options, words in (
            ({f"k{number}": 0 for number in range(1001)}, {}, "1001 keys"),
            ({"a": 1, "s": ORSet()}, {}, "update"),
            ({"a": 1, "tags": 1}, {}, "merge"),
            ({"a": 1, "b": object()}, {}, "b"),
            ({"a": 1}, {"if_version": {"b": 0}}, "not written"),
            ({"a": 1}, {"if_version": {"a": 0}, "atomic": False}, "atomic=True only"),
        ):
            with pytest.raises(cenote.RejectedError, match=words):
                await agent.put_many(items, **({"atomic": True} | options))
        assert await last_sequence(store) == before
        await agent.put_many({"tags": "plain"}, atomic=True, if_version={"tags": tags})  # who names it may overwrite it
        assert await agent.get("tags") == "plain"


async def test_large_values_and_times_to_live(cenote_servers: TestServers) -> None:
    """Values beside KV, and inline ones that are more than is sent at one go."""
    dice = random.Random(1)
    items = {f"large{number}": dice.randbytes(800_000) for number in range(2)}
    items |= {f"middle{number}": dice.randbytes(300_000) for number in range(20)}
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as other:
        await store.agent("a").put_many(items, atomic=True, ttl=timedelta(hours=1))
        assert await other.agent("a").get_many(items) == items
        assert (await other.agent("a").entry("large1")).expires_at is not None


async def test_a_batch_that_has_no_room_is_refused_whole(cenote_servers: TestServers) -> None:
    settings = cenote_servers.fresh(**QUICK, flush__enabled=False, flush__backlog_count_max=30, **SMALL)
    async with cenote.open(**settings) as store:
        agent = store.agent("a")
        await agent.put_many(dict.fromkeys(KEYS, 0), atomic=True)
        before = await last_sequence(store)
        with pytest.raises(cenote.BackpressureError):
            await agent.put_many(dict.fromkeys(KEYS, 1), atomic=True)
        assert await last_sequence(store) == before
        await agent.put("one", 1)  # what fits is taken: the refused ones do not count


async def test_a_stream_without_batches_says_what_it_needs(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store:
        core, agent = store._core, store.agent("a")
        config = (await core.stream.info()).config
        await core.link.api(f"STREAM.UPDATE.{core.stream.name}", config | {"allow_atomic": False})
        with pytest.raises(cenote.RejectedError, match=r"older than 2\.12\.1; now it is 2\..*nats stream edit"):
            await agent.put_many({"a": 1, "b": 2}, atomic=True)
        await core.link.api(f"STREAM.UPDATE.{core.stream.name}", config)
        await agent.put_many({"a": 1, "b": 2}, atomic=True)
        store._machines.atomic._able = 0  # as after a reconnect
        core.link.server_version = (2, 11, 9)
        with pytest.raises(cenote.RejectedError, match=r"needs nats-server 2\.12\.1 or newer; this one is 2\.11\.9"):
            await agent.put_many({"a": 3, "b": 4}, atomic=True)
        assert await agent.get_many(["a", "b"]) == {"a": 1, "b": 2}
        await agent.put_many({"a": 5, "b": 6})


async def test_a_stream_with_too_many_open_batches_is_waited_for(cenote_servers: TestServers) -> None:
    """The server holds 50 for a stream; here others hold all of them for a moment."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as other:
        link, agent = store._core.link, store.agent("a")
        wire = store._core.target(agent._agent, "open").wire
        for number in range(50):
            header = b"Cenote: 1;j;x.%d;;\r\nNats-Batch-Id: open%d\r\nNats-Batch-Sequence: 1\r\n" % (number, number)
            link.send(wire, b"", b"0", header)
        await store._core.stream.info()
        atomic = other._machines.atomic
        writing = asyncio.create_task(other.agent("a").put_many({"a": 1, "b": 2}, atomic=True))
        await reached(lambda: atomic._attempts >= 2, "a refusal")
        for number in range(50):
            header = b"Cenote: 1;j;x.%d;;\r\nNats-Batch-Id: open%d\r\nNats-Batch-Sequence: 2\r\n" % (number, number)
            link.send(wire, b"", b"1", header + b"Nats-Batch-Commit: 1\r\n")
        assert (await writing)["b"].version.revision > 0
        assert await agent.get_many(["a", "b"]) == {"a": 1, "b": 2}


def test_the_blocking_twin(cenote_servers: TestServers) -> None:
    with blocking.open(**cenote_servers.fresh(**QUICK)) as store:
        agent = store.agent("a")
        first = agent.put_many({"a": 1, "b": 2}, atomic=True)
        agent.put_many({"a": 3, "b": 4}, atomic=True, if_version=first)
        with pytest.raises(cenote.ConflictError, match="'a'"):
            agent.put_many({"a": 5, "b": 6}, atomic=True, if_version=first)
        assert agent.get_many(["a", "b"]) == {"a": 3, "b": 4}


# --- seen together ------------------------------------------------------------------------------------------


@toothed(the_second_look)
async def test_i5_what_sql_shows_is_no_newer_than_what_kv_showed(cenote_servers: TestServers) -> None:
    """One key is in KV, one in SQL only. After KV's answer both are written, and flushed."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as reader:
        agent = store.agent("a")
        await agent.put_many({"a": 1, "b": 1}, atomic=True)
        assert await evict_all(store) >= 2
        await agent.put("a", 1)

        async def overtake() -> None:
            await agent.put_many({"a": 2, "b": 2}, atomic=True)
            await store.flush(20)

        with at(read_answered=overtake) as crossings:
            seen = await reader.agent("a").get_many(["a", "b"])
        assert crossings["read.answered"]
        demand(seen["a"] == seen["b"], f"I5: half of a batch was shown: {seen}")


@toothed(the_comparison_with_the_feed)
async def test_i5_memory_and_kv_are_not_mixed_when_the_feed_is_late(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as reader:
        agent, view = store.agent("a"), reader.agent("a")
        await agent.put_many({"a": 1, "b": 1}, atomic=True)
        assert await view.get("a") == 1
        feed, late = reader._core.coherence._feed, []
        assert feed is not None
        tell, feed._on_entry = feed._on_entry, lambda *event: late.append(event)
        await agent.put_many({"a": 2, "b": 2}, atomic=True)
        seen = await view.get_many(["a", "b"])
        demand(seen == {"a": 2, "b": 2}, f"I5: half of a batch was shown: {seen}")
        feed._on_entry = tell
        await reached(lambda: len(late) >= 2, "the feed's events")
        for event in late:
            tell(*event)
        assert await view.get_many(["a", "b"]) == {"a": 2, "b": 2}


@toothed(the_end_of_a_batch_in_l1)
async def test_i5_memory_never_shows_half_a_batch(cenote_servers: TestServers) -> None:
    """Everything is in memory, and the members of each batch arrive in many pieces."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as reader:
        agent, view = store.agent("a"), reader.agent("a")
        await agent.put_many(dict.fromkeys(KEYS, "0"), atomic=True)
        await view.get_many(KEYS)
        within = 0
        done = asyncio.Event()

        async def read() -> None:
            nonlocal within
            while not done.is_set():
                within += reader._core.coherence.listening and reader._core.cache.lookup(target) is not None
                seen = await view.get_many(KEYS)
                demand(len({value[-1:] for value in seen.values()}) == 1, "I5: memory showed half of a batch")
                await asyncio.sleep(0)

        target = reader._core.target(view._agent, KEYS[-1]).subject
        noise = random.Random(2).randbytes(20_000).hex()
        reading = asyncio.create_task(read())
        try:
            for number in range(1, 10):
                await agent.put_many({key: noise + str(number) for key in KEYS}, atomic=True)
                await asyncio.sleep(0.02)
        finally:
            done.set()
            await reading
        assert within > 100, "memory was hardly asked"
        await eventually(lambda: all_of(view, noise + "9"), "I4: memory stays behind")


async def all_of(agent: Any, value: str) -> bool:
    return set((await agent.get_many(KEYS)).values()) == {value}


async def test_a_watch_tells_of_members_one_after_the_other(cenote_servers: TestServers) -> None:
    """Beside other writes; whoever was told of one finds all."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as watcher:
        agent, view = store.agent("a"), watcher.agent("a")
        told: list[tuple[str, Any]] = []

        async def follow() -> None:
            async for entry in view.watch():
                told.append((entry.key, entry.value))
                if entry.key in KEYS:
                    found = await view.get_many(KEYS)
                    demand(set(found.values()) == {found["k0"]}, f"I5: a watch told of {entry}, and half is there")
                    demand(found["k0"] >= entry.value, "I5: a watch told of what a read does not find")

        following = asyncio.create_task(follow())
        while not told:
            await agent.put("mark", 0)
            await asyncio.sleep(0.01)
        for number in range(8):
            await asyncio.gather(
                agent.put_many(dict.fromkeys(KEYS, number), atomic=True),
                *(agent.put(f"other{one}", number) for one in range(5)),
            )
        await reached(lambda: following.done() or told.count(("k19", 7)), "the last event")
        if following.done():
            following.result()
        following.cancel()
        demand(len(told) >= 8 * 25, "a watch left something out")
        for number in range(8):
            places = [place for place, (key, value) in enumerate(told) if key in KEYS and value == number]
            assert places == list(range(places[0], places[0] + len(KEYS))), f"batch {number} is torn in the watch"


async def test_600_keys_reach_sql(cenote_servers: TestServers) -> None:
    """More than one flush takes: once each receipt is durable, SQL has all, or newer."""
    keys = [f"k{number}" for number in range(600)]
    async with (
        cenote.open(**cenote_servers.fresh(**QUICK)) as store,
        another(store) as other,
        tables(cenote_servers, store) as sql,
    ):
        agent = store.agent("a")
        await agent.put_many(dict.fromkeys(keys, 0), atomic=True)
        receipts = await agent.put_many(dict.fromkeys(keys, 1), atomic=True)
        await asyncio.gather(*(receipt.durable(20) for receipt in receipts.values()))
        rows = await sql.link.fetch(f"SELECT value::text FROM {sql.schema}.state WHERE agent_id = $1", agent.id)
        assert [row["value"] for row in rows] == ["1"] * 600
        assert await evict_all(store) >= 500
        assert await other.agent("a").get_many(keys) == dict.fromkeys(keys, 1)


# --- lost answers -------------------------------------------------------------------------------------------


@toothed(the_look_at_the_leader)
async def test_i12_a_batch_whose_answer_is_lost_happens_once(cenote_servers: TestServers) -> None:
    async with FaultProxy(urlsplit(cenote_servers.by_url()["kv"]).port or 0) as proxy:
        settings = cenote_servers.by_url(kv_port=proxy.port, **QUICK, flush__enabled=False)
        async with cenote.open(**settings) as store:
            agent = store.agent("a")
            first = await agent.put_many(dict.fromkeys(KEYS, 0), atomic=True)
            before = await last_sequence(store)
            proxy.lose_answer_to(b"Nats-Batch-Commit")
            receipts = await agent.put_many(dict.fromkeys(KEYS, 1), atomic=True, if_version={})
            assert proxy.lost == 1
            demand(await last_sequence(store) == before + len(KEYS), "I12: a batch was written twice")
            for key, receipt in receipts.items():
                message = await in_kv(agent, key)
                demand(message and message.sequence == receipt.version.revision, f"I12: {key} has another version")

            async def interrupt() -> None:
                proxy.reset()
                await asyncio.sleep(0.05)

            before = await last_sequence(store)
            with at(batch_sent=interrupt) as crossings:  # nothing is stored: it is simply sent again
                await agent.put_many(dict.fromkeys(KEYS, 2), atomic=True, if_version=receipts)
            assert crossings["batch.sent"] == 2
            demand(await last_sequence(store) == before + len(KEYS), "I12: a batch was written twice")
            assert first["k0"].version < receipts["k0"].version
            assert await agent.get_many(KEYS) == dict.fromkeys(KEYS, 2)
