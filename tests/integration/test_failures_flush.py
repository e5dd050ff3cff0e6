"""The write-behind under fire: S02, S07, S21, and I1, I3, I7, I11, I13. Each test runs again without its rule."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

import cenote
from cenote.agent import AgentState
from cenote.engine import batch, hand
from cenote.kv import consumer
from cenote.model import entry
from cenote.sql.dead_letters import DeadLetterTable
from cenote.sql.loader import Queries
from cenote.sql.rows import Flushed
from cenote.store import Store
from cenote.testing import TestServers
from witness import at, demand, eventually, reached, tables, toothed

QUICK = {"flush__drain_ms": 0}


# --- the rules, taken out -----------------------------------------------------------------------------------


def the_fence(patch: pytest.MonkeyPatch) -> None:
    """SQL takes whatever comes last."""
    true = "(s.epoch, s.version) < (excluded.epoch, excluded.version)"
    plain = Queries.__getitem__
    patch.setattr(Queries, "__getitem__", lambda self, name: plain(self, name).replace(true, "true"))


def the_dirty_set_by_sequence(patch: pytest.MonkeyPatch) -> None:
    """Dirty by key: what was flushed is clean, also when it was written again meanwhile."""
    plain, clean = hand.build, set[str]()

    def build(deliveries: Sequence[batch.Delivery], *rest: Any) -> batch.Batch:
        built = plain([one for one in deliveries if one.subject not in clean], *rest)
        clean.update(one.subject for one in deliveries)
        return built._replace(settled=list(deliveries))

    patch.setattr(hand, "build", build)


def the_newest_of_a_batch(patch: pytest.MonkeyPatch) -> None:
    """Of two deliveries of one key in one batch the older wins."""
    plain = hand.build

    def build(deliveries: Sequence[batch.Delivery], *rest: Any) -> batch.Batch:
        first: dict[str, batch.Delivery] = {}
        for one in deliveries:
            first.setdefault(one.subject, one)
        return plain(list(first.values()), *rest)._replace(settled=list(deliveries))

    patch.setattr(hand, "build", build)


def acks_one_by_one(patch: pytest.MonkeyPatch) -> None:
    """An ack settles everything before it, too."""
    plain = consumer.consumer_config
    patch.setattr(consumer, "consumer_config", lambda *a, **k: plain(*a, **k) | {"ack_policy": "all"})


def the_ack_after_the_commit(patch: pytest.MonkeyPatch) -> None:
    """Acked when taken in hand."""
    plain = hand.Hand._flush

    async def flush(self: hand.Hand, taken: list[batch.Delivery]) -> None:
        hand.ack_many(self._core.link, [one.reply for one in taken], generation=self._generation)
        await plain(self, taken)

    patch.setattr(hand.Hand, "_flush", flush)


def the_bisection(patch: pytest.MonkeyPatch) -> None:
    """A batch that SQL refuses is tried again as it is."""
    patch.setattr(hand, "DataRefused", type("Never", (Exception,), {}))


def the_quarantined_row(patch: pytest.MonkeyPatch) -> None:
    """What SQL refuses is put aside without a row."""

    async def aside(*_: Any, **__: Any) -> Flushed:
        return Flushed(1, 0)

    patch.setattr(DeadLetterTable, "flush_one_quarantined", aside)


# --- the tests ----------------------------------------------------------------------------------------------


@toothed(the_dirty_set_by_sequence)
async def test_s02_a_write_during_a_flush_is_flushed(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, tables(cenote_servers, store) as sql:
        agent = store.agent("s02")
        with at(flush_taken=lambda: agent.put("k", "second")) as crossed:
            await agent.put("k", "first")
            await eventually(lambda: holds(sql, agent, "k", '"second"'), "I1: the second write never reached SQL")
            await reached(lambda: crossed["flush.committed"] >= 2, "two flushes")
        await store.flush(5)


@toothed(the_newest_of_a_batch)
async def test_the_newest_of_a_batch_wins(cenote_servers: TestServers) -> None:
    slow = {"flush__interval_ms": 150, "flush__threshold_count": 400}
    async with cenote.open(**cenote_servers.fresh(**QUICK, **slow)) as store, tables(cenote_servers, store) as sql:
        agent = store.agent("coalesce")
        for number in range(300):
            await agent.put("k", number)
        await eventually(lambda: holds(sql, agent, "k", "299"), "I1: the last write never reached SQL")
        stats = await store.stats()
        assert stats.flushed < 300, "nothing was coalesced"


@toothed(the_fence)
async def test_s07_a_late_flush_never_takes_sql_back(cenote_servers: TestServers) -> None:
    released = asyncio.Event()
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, tables(cenote_servers, store) as sql:
        await sql.audit()
        agent = store.agent("s07")
        with at(flush_taken=released.wait) as crossed:
            await agent.put("k", "old")
            await reached(lambda: crossed.get("flush.taken"), "a flush that holds the old write")
            await agent.put("k", "new")
            await reached(lambda: holds(sql, agent, "k", '"new"'), "the new write in SQL")
            released.set()
            await reached(lambda: crossed.get("flush.acked", 0) >= 2, "the end of the late flush")
        assert await sql.demand_monotonic() >= 1
        demand(await holds(sql, agent, "k", '"new"'), "I3: an older value lies over a newer one")


@toothed(the_fence, tries=4)
async def test_i7_sql_applies_the_versions_of_a_key_in_order(cenote_servers: TestServers) -> None:
    """Two writers, three keys, flushes that overtake each other: SQL may skip, never swap."""
    dice = random.Random(7)
    small = {"flush__threshold_count": 2, "flush__batch_count_max": 4, "flush__interval_ms": 1}
    async with cenote.open(**cenote_servers.fresh(**QUICK, **small)) as store, tables(cenote_servers, store) as sql:
        await sql.audit()
        agent = store.agent("i7")
        written: dict[tuple[str, int], str] = {}

        async def write(writer: int) -> None:
            for number in range(120):
                key = f"k{dice.randrange(3)}"
                receipt = await agent.put(key, f"{writer}.{number}")
                written[(key, receipt.version.revision)] = f'"{writer}.{number}"'

        with at() as crossed:
            cenote.points.hook = lambda name: delay(name, dice, crossed)
            await asyncio.gather(*(write(number) for number in range(4)))
            await store.flush(20)
            await reached(lambda: crossed.get("flush.acked", 0) >= crossed["flush.taken"], "the last flush")
        history = await sql.history()
        assert len(written) == 480
        assert len(history) >= 10, "too few changes to show an order"
        await sql.demand_monotonic()
        wrong = [dict(one) for one in history if written[(one["key"], one["version"])] != one["value"]]
        demand(not wrong, f"I7: a version with the value of another: {wrong[:3]}")


@toothed(acks_one_by_one, the_ack_after_the_commit)
async def test_i1_a_flusher_that_dies_holding_a_batch_loses_nothing(cenote_servers: TestServers) -> None:
    """The first batch is taken and never committed, a later one is committed and acked; then the flusher dies."""
    settings = cenote_servers.fresh(**QUICK)
    async with cenote.open(**settings) as store, tables(cenote_servers, store) as sql:
        agent = store.agent("i1")
        with at(flush_taken=asyncio.Event().wait) as crossed:
            await agent.put("held", 1)
            await reached(lambda: crossed.get("flush.taken"), "a flush that holds a write")
            await agent.put("later", 2)
            await reached(lambda: crossed.get("flush.acked"), "the later write's ack")
            assert store._machines.flusher is not None
            await store._machines.flusher.stop()
        assert await sql.row(agent, "held") is None
        async with cenote.open(**settings):
            await eventually(lambda: holds(sql, agent, "held", "1"), "I1, I11: an acked write never reached SQL")


async def test_an_agent_is_known_by_name_though_its_flusher_died_after_the_ack(cenote_servers: TestServers) -> None:
    """Nothing of it will ever be delivered again: whoever joins by name, or watches, would not know it."""
    settings = cenote_servers.fresh(**QUICK)
    async with cenote.open(**settings) as store, tables(cenote_servers, store) as sql:
        agent = store.agent("newborn")
        with at(flush_acked=asyncio.Event().wait) as crossed:
            await agent.put("k", 1)
            await reached(lambda: crossed.get("flush.acked"), "the ack of the first write")
            assert store._machines.flusher is not None
            await store._machines.flusher.stop()
        async with cenote.open(**settings) as heir:
            await heir.agent("another").put("k", 2, durability="sql")
            query = f"SELECT count(*) FROM {sql.schema}.registry WHERE agent_id = $1 AND name = 'newborn'"
            demand(await sql.link.fetchval(query, agent.id) == 1, "an agent has rows and no name")


@toothed(the_bisection, the_quarantined_row)
async def test_s21_a_poison_value_stops_nobody(cenote_servers: TestServers) -> None:
    """What `put` would refuse, put there by a foreign writer: SQL refuses it, its neighbours go through."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, tables(cenote_servers, store) as sql:
        agent = store.agent("s21")
        await agent.put("bad", "its predecessor", durability="sql")
        poison = await smuggle(store, agent, "bad", b'"a\\u0000b"')
        broken = await smuggle(store, agent, "broken", b'{"a":')
        await smuggle(store, agent, "foreign", b"1", header=b"X-Not-Ours: 1\r\n")
        for number in range(10):
            await agent.put(f"good{number}", number)

        async def all_there() -> bool:
            return all([await holds(sql, agent, f"good{number}", str(number)) for number in range(10)])

        await eventually(all_there, "I13: a poison value keeps its neighbours from SQL")
        for key, sequence in (("bad", poison), ("broken", broken)):
            row = await sql.row(agent, key)
            demand(row and row["quarantined"] and row["version"] == sequence, f"I13: {key} is not in quarantine")
        letters = await store._core.table.dead_letters(0, 10)
        assert {letter.key for letter in letters} >= {"bad", "broken"}
        await agent.flush(5)
        await agent.put("bad", "well again", durability="sql")
        assert await sql.value(agent, "bad") == '"well again"'
        assert {key async for key in agent.keys("good")} == {f"good{number}" for number in range(10)}


async def test_i17_a_newer_format_waits_and_stops_nobody(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, tables(cenote_servers, store) as sql:
        agent = store.agent("i17")
        await smuggle(store, agent, "newer", b"?", header=b"Cenote: 99;whatever\r\n")
        await agent.put("good", 1)
        await eventually(lambda: holds(sql, agent, "good", "1"), "I13: a newer format keeps its neighbours from SQL")
        demand(await sql.row(agent, "newer") is None, "I17: a newer format was mangled")
        with pytest.raises(cenote.CodecError):
            await agent.get("newer")
        await reached(lambda: unknown_formats(store), "the count of unknown formats")
        assert (await store.health()).verdict is not cenote.Verdict.HEALTHY


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), object(), {1: 2}, b"x" * (65 * 1024 * 1024)], ids=lambda v: type(v).__name__
)
async def test_i13_a_refused_write_is_typed_and_harms_nobody(cenote_store: Store, value: object) -> None:
    agent = cenote_store.agent("i13")
    with pytest.raises(cenote.RejectedError) as refused:
        await agent.put("k", {"deep": [value]})
    assert "deep" in str(refused.value) or "MiB" in str(refused.value) or "bytes" in str(refused.value)
    await agent.put("k", "fine")
    assert await agent.get("k") == "fine"


# --- within -------------------------------------------------------------------------------------------------


async def holds(sql: Any, agent: AgentState, key: str, text: str) -> bool:
    """SQL has this JSON under the key."""
    return bool(await sql.value(agent, key) == text)


async def delay(name: str, dice: random.Random, crossed: dict[str, int]) -> None:
    """Let flushes overtake each other."""
    crossed[name] = crossed.get(name, 0) + 1
    if name == "flush.taken":
        await asyncio.sleep(dice.random() * 0.03)


async def smuggle(store: Store, agent: AgentState, key: str, body: bytes, header: bytes | None = None) -> int:
    """Write past our own checks, as a foreign client can; the sequence."""
    lines = entry.header("j", "foreign.1", None, None) if header is None else header
    return await store._core.stream.publish(agent._target(key).wire, lines, body, 2000)


async def unknown_formats(store: Store) -> bool:
    return (await store.stats()).unknown_formats > 0
