"""Messages while servers are away and answers are lost, while a sender is slow, and while partitions come and go. The
rule of the order runs again without it."""

import asyncio
from datetime import timedelta
from itertools import pairwise
from typing import Any

import asyncpg
import pytest

import cenote
from cenote.model.uuid7 import uuid7
from cenote.repositories.messages_entity import outgoing
from cenote.repositories.messages_upkeep import Upkeep
from cenote.sql.messages import MessageTable, Partitions
from cenote.store import Store
from cenote.testing import FaultProxy, TestServers
from witness import another, demand, reached, toothed

QUICK = {"flush__drain_ms": 0}


def port(servers: TestServers, name: str) -> int:
    """Where a server listens."""
    return int(servers.info[name]["address"].rpartition(":")[2])


def letter(body: object, **given: Any) -> Any:
    return {"body": body, "sender": "a", "to": "b", **given}


def table(store: Store) -> MessageTable:
    return store.messages._table


def upkeep(store: Store) -> Upkeep:
    """As the active flusher has it."""
    return Upkeep(store._core, table(store))


async def bodies(store: Store) -> list[Any]:
    return [one.body for one in await store.messages.read(limit=1000)]


# --- one order ----------------------------------------------------------------------------------------------


def the_lock_of_all_senders(patch: pytest.MonkeyPatch) -> None:
    """Each sender takes a place as he comes, and commits when he likes."""
    whole = MessageTable._arguments

    def own_lock(self: MessageTable, rows: Any, *, check: bool) -> tuple[object, ...]:
        return (uuid7().int & 0xFFFFFFFF, *whole(self, rows, check=check)[1:])

    patch.setattr(MessageTable, "_arguments", own_lock)


@toothed(the_lock_of_all_senders)
async def test_nothing_appears_before_what_was_seen(cenote_store: Store, cenote_servers: TestServers) -> None:
    """A sender has his place and takes long to commit. Nobody who comes later is seen before him: a reader who goes on
    after the last message that he saw would never meet his."""
    messages = cenote_store.messages
    await messages.send("before", sender="a", to="b")
    link = await asyncpg.connect(cenote_servers.sql_dsn)
    try:
        slow = link.transaction()
        await slow.start()
        arguments = table(cenote_store)._arguments([outgoing(letter("slow"))], check=False)
        await link.fetch(cenote_store._core.db.queries["send_messages"], *arguments)
        quick = asyncio.create_task(messages.send("quick", sender="a", to="b"))
        await asyncio.wait([quick], timeout=0.3)
        page = await messages.read(to="b")
        await slow.commit()
    finally:
        await link.close()
    await quick
    rest = await messages.read(to="b", cursor=page.items[-1].position)
    demand(
        [one.body for one in (*page, *rest)] == ["before", "slow", "quick"],
        f"I7: a reader saw {[one.body for one in page]}, then {[one.body for one in rest]}",
    )


# --- servers away -------------------------------------------------------------------------------------------


async def test_a_lost_answer_is_one_message(cenote_servers: TestServers) -> None:
    async with FaultProxy(port(cenote_servers, "postgres")) as proxy:
        settings = cenote_servers.by_url(sql_port=proxy.port, **QUICK)
        async with cenote.open(**settings) as store:
            await store.messages.send("first", sender="a", to="b")
            for n in range(3):
                proxy.lose_answer_to(f"lost-{n}".encode())
                sent = await store.messages.send(f"lost-{n}", sender="a", to="b")
                assert (await store.messages.get(sent.id)).body == f"lost-{n}"
            proxy.lose_answer_to(b"lost-many-1")
            many = await store.messages.send_many([letter(f"lost-many-{n}") for n in range(5)])
            assert proxy.lost == 4, "no answer was lost"
            stored = await store.messages.read(limit=1000)
            assert [one.body for one in stored] == [
                "first",
                *(f"lost-{n}" for n in range(3)),
                *(one.body for one in many),
            ]
            assert stored.items[-5:] == many


async def test_a_lost_commit_of_a_transaction_is_one_message_and_it_is_heard(cenote_servers: TestServers) -> None:
    async with FaultProxy(port(cenote_servers, "postgres")) as proxy:
        settings = cenote_servers.by_url(sql_port=proxy.port, messages__poll_ms=60_000, flush__enabled=False, **QUICK)
        async with cenote.open(**settings) as store, another(store, messages__poll_ms=60_000) as other:
            await store.messages.send("before", sender="a", to="b")
            feed = aiter(other.messages.subscribe(to="b", since=0))
            assert (await anext(feed)).body == "before"
            waiting = asyncio.ensure_future(anext(feed))

            async def work(tx: Any) -> cenote.Message:
                return await store.messages.send("within", sender="a", to="b", tx=tx)

            proxy.lose_answer_to(b"COMMIT")
            sent = await store.transact(work)
            assert proxy.lost == 1, "no answer was lost"
            async with asyncio.timeout(10):
                assert (await waiting).id == sent.id
            assert await bodies(store) == ["before", "within"]


@pytest.mark.judge
async def test_an_answer_that_cannot_be_had_again_is_told_as_unknown(cenote_servers: TestServers) -> None:
    async with FaultProxy(port(cenote_servers, "postgres")) as proxy:
        settings = cenote_servers.by_url(sql_port=proxy.port, retry__deadline_ms=300, flush__enabled=False, **QUICK)
        async with cenote.open(**settings) as store:
            known = uuid7()
            await store.messages.send("first", sender="a", to="b")
            proxy.hold()
            sending = asyncio.create_task(store.messages.send("held", sender="a", to="b", message_id=known))
            await asyncio.sleep(0.1)
            proxy.cut()
            with pytest.raises(cenote.OutcomeUnknownError, match="may or may not have happened"):
                await sending
            with pytest.raises(cenote.UnavailableError):
                await store.messages.send("never sent", sender="a", to="b")
            proxy.heal()
            await store.messages.send("held", sender="a", to="b", message_id=known)
            assert await bodies(store) == ["first", "held"]


async def test_a_subscriber_cut_off_from_both_servers_misses_none(cenote_servers: TestServers) -> None:
    """Cut off, and resumed by itself; then another one goes on where it was."""
    heard: list[cenote.Message] = []
    async with FaultProxy(port(cenote_servers, "postgres")) as sql, FaultProxy(port(cenote_servers, "nats")) as kv:
        settings = cenote_servers.by_url(sql_port=sql.port, kv_port=kv.port, flush__enabled=False, **QUICK)
        plain = cenote_servers.by_url(**QUICK) | {"namespace": settings["namespace"]}
        async with cenote.open(**plain) as sender, cenote.open(**settings) as store:

            async def listen() -> None:
                async for one in store.messages.subscribe(to="b"):
                    heard.append(one)

            listener = asyncio.create_task(listen())
            while not heard:
                await sender.messages.send(-1, sender="a", to="b")
                await asyncio.sleep(0.01)
            for n in range(60):
                await sender.messages.send(n, sender="a", to="b")
                if n == 20:
                    sql.cut()
                    kv.cut()
                if n == 40:
                    sql.heal()
                    kv.heal()
            await reached(lambda: heard[-1].body == 59, "the last message")
            assert kv.accepted > 1 or kv.refused
            assert sql.accepted > 1
            got = [one.body for one in heard if one.body >= 0]
            assert got == list(range(60))
            listener.cancel()
            at = next(one.position for one in heard if one.body == 30)
            feed = aiter(store.messages.subscribe(to="b", since=at))
            assert [(await anext(feed)).body for _ in range(29)] == list(range(31, 60))


async def test_messages_are_sent_and_heard_while_nats_is_away(cenote_servers: TestServers) -> None:
    """The word that wakes is lost: the subscriber looks by itself."""
    async with FaultProxy(port(cenote_servers, "nats")) as kv:
        settings = cenote_servers.by_url(kv_port=kv.port, messages__poll_ms=100, **QUICK)
        async with cenote.open(**settings) as store:
            await store.messages.send(0, sender="a", to="b")
            feed = aiter(store.messages.subscribe(to="b", since=0))
            assert (await anext(feed)).body == 0
            waiting = asyncio.ensure_future(anext(feed))
            kv.cut()
            await reached(lambda: not store._core.link.connected, "NATS to be away")
            await store.messages.send(1, sender="a", to="b")
            assert (await waiting).body == 1
            kv.heal()
            await reached(lambda: store._core.link.connected, "NATS")


# --- partitions ---------------------------------------------------------------------------------------------


async def partitions(store: Store) -> Partitions:
    return await table(store).partitions()


async def ahead(store: Store, moment: timedelta) -> None:
    """PostgreSQL's clock was so far ahead once."""
    schema = store.config.names.schema("messages")
    at = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint + $1::bigint"
    await store._core.db.fetchval(f"SELECT setval('{schema}.position', {at})", moment // timedelta(microseconds=1))


async def test_partitions_are_made_at_first_use_and_ahead(cenote_servers: TestServers) -> None:
    settings = cenote_servers.fresh(messages__partition_s=3600, messages__ahead_count=3)
    async with cenote.open(**settings) as store:
        assert "messages" in [chore.name for chore in store._core.chores]
        await upkeep(store).tend()
        assert (await partitions(store)).bounds == []  # nobody uses it
        await store.messages.send(1, sender="a", to="b")
        found = await partitions(store)
        assert len(found.bounds) in (1, 2)
        assert found.net_us is None
        await upkeep(store).tend()
        found = await partitions(store)
        assert len(found.bounds) >= 4
        hours = [since // 3_600_000_000 for since, _ in found.bounds]
        assert [until // 3_600_000_000 for _, until in found.bounds] == [hour + 1 for hour in hours]
    async with cenote.open(**(settings | {"messages__partition_s": 1000})) as store:  # finer from now on: no overlap
        await ahead(store, timedelta(hours=5))
        await store.messages.send(2, sender="a", to="b")
        await upkeep(store).tend()
        found = await partitions(store)
        assert found.net_us is None
        assert all(left[1] <= right[0] for left, right in pairwise(found.bounds))
        assert await bodies(store) == [1, 2]


async def test_a_send_finds_its_place_where_no_partition_can_be_made(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages go to the net, are read there like all others, and move out of it once a partition can be made."""
    monkeypatch.setattr(MessageTable, "make_partition", _refuses)
    async with cenote.open(**cenote_servers.fresh(messages__partition_s=60)) as store:
        sent = [await store.messages.send(n, sender="a", to="b") for n in range(5)]
        await ahead(store, timedelta(hours=2))
        sent += [await store.messages.send(n, sender="a", to="b") for n in range(5, 10)]
        assert (await partitions(store)).bounds == []
        again = await store.messages.send(3, sender="a", to="b", message_id=sent[3].id)
        assert again == sent[3]
        assert (await store.messages.read(to="b")).items == sent
        monkeypatch.undo()
        await upkeep(store).tend()
        found = await partitions(store)
        assert found.net_us is None
        assert len(found.bounds) >= 2
        assert (await store.messages.read(to="b")).items == sent
        assert await store.messages.send(7, sender="a", to="b", message_id=sent[7].id) == sent[7]
        assert await bodies(store) == list(range(10))


async def _refuses(self: MessageTable, at_us: int, seconds: int, *, search: bool) -> int:
    raise cenote.SetupError("this role must not create tables")


async def test_a_clock_that_goes_back_takes_no_place_twice(cenote_store: Store) -> None:
    messages = cenote_store.messages
    await messages.send(0, sender="a", to="b")
    await ahead(cenote_store, timedelta(days=1))  # as if the clock had been put back by a day since
    sent = [await messages.send(n, sender="a", to="b") for n in range(1, 4)]
    assert await bodies(cenote_store) == [0, 1, 2, 3]
    times = [one.sent_at for one in sent if one.sent_at is not None]
    assert [right - left for left, right in pairwise(times)] == [timedelta(microseconds=1)] * 2


async def test_retention_drops_partitions_and_tells_whoever_was_there(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has dealt with the last message that was dropped, or was not meant by any, goes on; others are told."""
    settings = cenote_servers.fresh(messages__partition_s=3600, messages__retention_s=86_400)
    async with cenote.open(**settings) as store, another(store, messages__poll_ms=100) as other:
        messages = store.messages
        looks = _counted(monkeypatch, table(other))
        quiet = aiter(other.messages.subscribe(to="nobody"))
        waiting = asyncio.ensure_future(anext(quiet))
        await messages.send_many([letter(n) for n in range(3)])
        await _two_days_ago(store)
        recent = await messages.send("recent", sender="a", to="b")
        old = (await messages.read(limit=3)).items
        at_the_first = aiter(messages.subscribe(to="b", since=0))
        assert (await anext(at_the_first)).body == 0
        assert len((await partitions(store)).bounds) >= 2
        sofar = len(looks)
        await reached(lambda: len(looks) >= sofar + 2, "a look of the quiet one")
        await upkeep(store).tend()
        assert await bodies(store) == ["recent"]
        with pytest.raises(cenote.ExpiredError, match="may have been dropped"):
            await anext(aiter(messages.subscribe(to="b", since=old[1].position)))
        for since in (old[2].position, 0):
            assert (await anext(aiter(messages.subscribe(to="b", since=since)))).body == "recent"
        with pytest.raises(cenote.NotFoundError):
            await messages.get(old[0].id)
        assert await messages.get(recent.id) == recent
        await messages.send("at last", sender="a", to="nobody")
        assert (await waiting).body == "at last"  # it missed nothing, so it is told of nothing


def _counted(patch: pytest.MonkeyPatch, looked_at: MessageTable) -> list[int]:
    """What a quiet subscriber found to be the newest place, look by look."""
    found: list[int] = []
    whole = looked_at.newest_us

    async def newest_us() -> int:
        found.append(await whole())
        return found[-1]

    patch.setattr(looked_at, "newest_us", newest_us)
    return found


async def _two_days_ago(store: Store) -> None:
    """What was sent lies where it would have been sent two days ago."""
    before = (await partitions(store)).at_us - 2 * 86_400_000_000
    await table(store).make_partition(before, 3600, search=False)
    await table(store).make_partition(before + 3_600_000_000, 3600, search=False)
    schema = store.config.names.schema("messages")
    await store._core.db.execute(f"UPDATE {schema}.log SET ts = ts - interval '2 days'")
