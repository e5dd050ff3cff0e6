"""Interleavings that the rules of the flow exclude, of readers: who is who, what a row serves, what a list shows."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

import cenote
from cenote.engine import entries
from cenote.engine.coherence import Coherence
from cenote.engine.core import Core
from cenote.engine.reader import Reader
from cenote.engine.registrar import Registrar
from cenote.engine.watcher import Watch
from cenote.kv.message import Message
from cenote.model import entry
from cenote.model import key as keys
from cenote.model.entry import Stored, Tier
from cenote.sql.loader import Queries
from cenote.store import Store
from cenote.testing import FaultProxy, TestServers
from witness import another, demand, eventually, evict_all, in_kv, reached, tables, toothed

QUICK = {"flush__drain_ms": 0}


# --- the rules, taken out -----------------------------------------------------------------------------------


def the_end_of_coherence_by_silence(patch: pytest.MonkeyPatch) -> None:
    """What memory holds is called fresh, however long nothing was heard."""
    patch.setattr(Coherence, "__bool__", lambda self: self.listening)


def one_spelling_of_an_id(patch: pytest.MonkeyPatch) -> None:
    """Whatever the library reads as a UUID is that UUID, also one into which names are hashed."""

    def own_id(text: str) -> UUID | None:
        try:
            return UUID(text)
        except ValueError:
            return None

    patch.setattr(keys, "_own_id", own_id)


def the_version_of_a_replay(patch: pytest.MonkeyPatch) -> None:
    """A dead letter that is retried is written over whatever its row holds."""
    same = "AND s.epoch = l.epoch AND s.version = l.version AND s.quarantined"
    plain = Queries.__getitem__
    patch.setattr(Queries, "__getitem__", lambda self, name: plain(self, name).replace(same, ""))


def registration_beside_the_flush(patch: pytest.MonkeyPatch) -> None:
    """Names are registered with the batch, and only the id may be there already."""
    plain = Queries.__getitem__

    def text(self: Queries, name: str) -> str:
        query = plain(self, name)
        return query.replace("ON CONFLICT", "ON CONFLICT (agent_id)") if name == "register" else query

    async def register(self: Registrar, agents: set[keys.AgentRef], _: object) -> None:
        await self._table.register([(agent.id, keys.sql_key(agent.text)) for agent in agents])

    patch.setattr(Queries, "__getitem__", text)
    patch.setattr(Registrar, "register", register)


def kv_before_sql_in_a_listing(patch: pytest.MonkeyPatch) -> None:
    """A listing reads SQL first."""

    async def scan(self: Reader, agent: keys.AgentRef, prefix: str) -> AsyncIterator[tuple[str, Stored, Tier]]:
        core, seen = self._core, set()
        for row in await core.table.page(agent.id, None, keys.sql_key(prefix), 1_000, live_only=True):
            seen.add(row.key)
            yield keys.from_sql_key(row.key), entries.from_row(row), Tier.RELATIONAL_DB
        async for message in core.live(core.agent_filter(agent)):
            key = keys.decode_token(core.split(message.subject)[1])
            if keys.sql_key(key) not in seen:
                yield key, entries.from_message(message, core.epochs), Tier.DISTRIBUTED_KV

    patch.setattr(Reader, "scan", scan)


def the_mark_of_a_copy_in_a_watch(patch: pytest.MonkeyPatch) -> None:
    """A watch tells whatever is stored."""
    plain = Watch._read

    def read(self: Watch, message: Message) -> Any:
        found = plain(self, message)
        return None if found is None else (found[0], found[1], msgspec.structs.replace(found[2], clean=False))

    patch.setattr(Watch, "_read", read)


# --- the tests ----------------------------------------------------------------------------------------------


@pytest.mark.judge
@toothed(the_end_of_coherence_by_silence)
async def test_i4_after_silence_what_memory_holds_is_called_stale(cenote_servers: TestServers) -> None:
    """Flow rule 10: the connection stands, and nothing comes."""
    async with (
        FaultProxy(nats_port(cenote_servers)) as proxy,
        cenote.open(**cenote_servers.by_url(kv_port=proxy.port, **QUICK)) as store,
    ):
        agent = store.agent("i4")
        await agent.put("k", "known")
        assert await agent.get("k") == "known"
        assert not (await agent.entry("k")).stale
        proxy.hold()

        async def stale() -> bool:
            return (await agent.entry("k")).stale

        await eventually(stale, "I4: a copy of any age is called fresh")
        assert await agent.get("k") == "known"
        proxy.heal()
        await reached(lambda: bool(store._core.coherence), "the leader's next answer")
        assert await agent.get("k") == "known"
        assert not (await agent.entry("k")).stale


@toothed(one_spelling_of_an_id)
async def test_i14_two_spellings_are_two_agents_in_every_tier(cenote_servers: TestServers) -> None:
    """Flow rule 11: KV keeps them apart by name, so SQL must by id: else one reads the other's state after eviction."""
    one = uuid4()
    names = [str(one), str(one).upper(), f"{{{one}}}", one.urn, one.hex, "bob", str(keys.agent_ref("bob").id)]
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as other:
        for name in names:
            await store.agent(name).put("k", name)
        await eventually(partial(all_settled, store), "I14: spellings that share a row keep each other from SQL")
        info = await store._core.stream.info()
        await store._core.stream.purge_below(info.last_seq + 1, generation=store._core.link.generation)
        for name in names:
            got = await other.agent(name).get("k")
            demand(got == name, f"I14: agent {name} reads what {got} has written")


@toothed(the_version_of_a_replay)
async def test_i4_a_dead_letter_that_is_retried_takes_nothing_back(cenote_servers: TestServers) -> None:
    """Flow rule 14: a replay goes through the fence under its own version; a newer write has come meanwhile."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, tables(cenote_servers, store) as sql:
        agent, table = store.agent("i4"), store._core.table
        await agent.put("k", "predecessor", durability="sql")
        target = agent._target("k")
        header = entry.header("j", "foreign.1", None, None)
        await store._core.stream.publish(target.wire, header, b'"a\\u0000b"', 5_000)

        async def quarantined() -> bool:
            row = await sql.row(agent, "k")
            return row is not None and bool(row["quarantined"])

        await reached(quarantined, "the quarantine")
        assert await evict_all(store) >= 1
        async with another(store) as other:
            demand(await other.agent("i4").get("k") == "a\0b", "I4: a quarantined write reads as its predecessor")
        letter = next(one for one in await table.dead_letters(0, 10) if one.key == "k")
        await agent.put("k", "newer", durability="sql")
        applied = await table.retry_dead_letter(letter.id, '"of the letter"', None)
        demand(await sql.value(agent, "k") == '"newer"', "I3: a replay lies over a newer write")
        assert not applied


@toothed(registration_beside_the_flush)
async def test_i13_a_name_that_somebody_else_has_stops_no_flush(cenote_servers: TestServers) -> None:
    """Flow rule 23: the registry holds the name under another id."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, tables(cenote_servers, store) as sql:
        await sql.link.execute(f"INSERT INTO {sql.schema}.registry (agent_id, name) VALUES ($1, 'scout-7')", uuid4())
        scout = store.agent("scout-7")
        for number in range(3):
            await scout.put(f"k{number}", number)
            await store.agent(f"other{number}").put("k", number)
            await eventually(partial(all_settled, store), "I13: a clash of names stops every flush")
        assert await sql.value(scout, "k2") == "2"
        assert await sql.link.fetchval(f"SELECT count(*) FROM {sql.schema}.registry WHERE name LIKE 'other%'") == 3


@toothed(kv_before_sql_in_a_listing)
async def test_i4_a_listing_misses_no_key_that_moves_meanwhile(cenote_servers: TestServers) -> None:
    """Flow rule 25: a key is flushed and evicted between the two halves of a listing."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as other:
        agent, flusher = store.agent("i4"), store._machines.flusher
        assert flusher is not None
        await agent.put("in sql", 1)
        assert await evict_all(store) >= 1
        await flusher.stop()
        await agent.put("moves", 2)
        listed: list[str] = []
        async for key in other.agent("i4").keys():
            listed.append(key)
            if len(listed) == 1:
                flusher.start()
                assert await evict_all(store) >= 1
        demand(sorted(listed) == ["in sql", "moves"], f"I4: a listing is short: {listed}")


@toothed(the_mark_of_a_copy_in_a_watch)
async def test_i4_a_copy_from_sql_is_no_event(cenote_servers: TestServers) -> None:
    """Flow rule 25: what a read brings back into KV has not changed."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as other:
        agent = store.agent("i4")
        await agent.put("k", "old")
        assert await evict_all(store) >= 1
        told: list[Any] = []
        done = asyncio.Event()

        async def watch() -> None:
            async for one in other.agent("i4").watch():
                told.append((one.key, one.value))
                if one.key == "last":
                    done.set()

        task = asyncio.create_task(watch())
        await reached(lambda: other._core.coherence.listeners, "the watch")
        assert await agent.get("k") == "old"
        assert await in_kv(agent, "k") is not None, "nothing was hydrated"
        await agent.put("last", 1)
        await reached(done.is_set, "the last event")
        task.cancel()
        demand(told == [("last", 1)], f"I4: a watch tells of what has not changed: {told}")


# --- what the tests look with -------------------------------------------------------------------------------


async def all_settled(store: Store) -> bool:
    core: Core = store._core
    consumer = None if core.durable_name is None else await core.consumer(core.durable_name)
    return consumer is not None and consumer.pending + consumer.ack_pending == 0


def nats_port(servers: TestServers) -> int:
    return int(servers.info["nats"]["address"].rpartition(":")[2])
