"""KV nearly full, and a long backlog: I13, I15, I16; flow rule 17. Each test runs again without its rule."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from kv_server import USER, running

import cenote
from cenote.agent import AgentState
from cenote.engine.evictor import Evictor
from cenote.engine.fullness import Fullness
from cenote.store import Store
from cenote.testing import FaultProxy, TestServers
from witness import another, at, demand, eventually, evict_all, in_kv, reached, tables, toothed

QUICK = {"flush__drain_ms": 0}
MIB = 1 << 20
BIG = "x" * 16_000


# --- the rules, taken out -----------------------------------------------------------------------------------


def the_pressure(patch: pytest.MonkeyPatch) -> None:
    """Entries wait for `state.ttl_s`, however full it is."""
    patch.setattr(Evictor, "_pressed", lambda self, share: False)


def the_count_between_looks(patch: pytest.MonkeyPatch) -> None:
    """Only what the last look has shown counts."""
    plain = Fullness.admit

    def admit(self: Fullness, size: int, *, deleting: bool) -> None:
        self._counted, self._counted_bytes = self._admitted, self._admitted_bytes
        plain(self, size, deleting=deleting)

    patch.setattr(Fullness, "admit", admit)


def the_first_pass(patch: pytest.MonkeyPatch) -> None:
    """What a new durable delivers once more counts as waiting for SQL."""
    plain = Fullness.learn

    def learn(self: Fullness, info: Any, consumer: Any, durable: Any, begun: Any) -> None:
        plain(self, info, consumer, durable, begun)
        self._dirty = self.backlog

    patch.setattr(Fullness, "learn", learn)


def the_brim(patch: pytest.MonkeyPatch) -> None:
    """Clean copies are made as long as the server takes them."""
    patch.setattr("cenote.engine.hydrator.BRIM_SHARE", 2.0)


def the_cry_for_room(patch: pytest.MonkeyPatch) -> None:
    """What the server refuses is told to the caller only."""
    patch.setattr(Fullness, "refused", lambda self: None)


def the_flusher_without_room(patch: pytest.MonkeyPatch) -> None:
    """A renewal that the server has no room for ends the shift."""
    patch.setattr("cenote.engine.lease.NoSpace", type("Never", (Exception,), {}))


def the_reserve(patch: pytest.MonkeyPatch) -> None:
    """Writes are taken until the server refuses them."""
    patch.setattr("cenote.engine.fullness.FULL_SHARE", 2.0)


# --- the tests ----------------------------------------------------------------------------------------------


@toothed(the_pressure)
async def test_i16_flushed_entries_make_room_for_new_ones(cenote_servers: TestServers) -> None:
    """More distinct keys than fit, all younger than `state.ttl_s`."""
    settings = cenote_servers.fresh(**QUICK, kv__bytes_max=MIB)
    async with cenote.open(**settings) as store, tables(cenote_servers, store) as sql:
        agent, count, refused = store.agent("full"), 100, 0

        for number in range(count):

            async def taken(number: int = number) -> bool:
                nonlocal refused
                try:
                    await agent.put(f"k{number}", f"{number} {BIG}")
                except cenote.BackpressureError as error:
                    refused += bool(error.retryable and error.hint)
                    await asyncio.sleep(0.05)
                    return False
                return True

            await eventually(taken, "I16: everything is flushed, and new keys are refused")
        assert refused > 0, "it was never full"
        await store.flush(20)
        assert store._core.counts.evicted > 0
        assert await in_kv(agent, "k0") is None
        for number in range(count):
            demand(await agent.get(f"k{number}") == f"{number} {BIG}", "I11: a write was lost at its eviction")
            demand(await sql.value(agent, f"k{number}"), "I1: an acked write never reached SQL")


@toothed(the_count_between_looks)
async def test_i15_a_burst_does_not_pass_the_bound_of_the_backlog(cenote_servers: TestServers) -> None:
    """PostgreSQL frozen, 400 writes at once where 100 may wait; thawed, it drains by itself."""
    small = {"flush__backlog_count_max": 100, "flush__batch_count_max": 20, "flush__threshold_count": 10}
    async with FaultProxy(int(cenote_servers.info["postgres"]["address"].rpartition(":")[2])) as proxy:
        settings = cenote_servers.by_url(sql_port=proxy.port, **QUICK, **small)
        async with cenote.open(**settings) as store, tables(cenote_servers, store) as sql:
            agent = store.agent("burst")
            await agent.put("before", 0, durability="sql")
            proxy.hold()
            refused = await storm(agent, [f"k{number}" for number in range(400)])
            info = await store._core.stream.info()
            demand(info.messages <= 102, f"I15: {info.messages} entries wait where 100 may")
            assert len(refused) > 0, "nobody was refused"
            await agent.delete("before")
            assert await agent.get("before") is None
            absent = [key for key in refused if await in_kv(agent, key) is not None]
            demand(not absent, f"I12: refused, and there: {absent[:3]}")
            proxy.heal()
            await eventually(lambda: accepted(agent, "after"), "I16: writes are refused after PostgreSQL is back")
            await store.flush(20)
            for number in range(400):
                stored = await sql.value(agent, f"k{number}")
                demand((stored is None) == (f"k{number}" in refused), f"I1, I12: k{number} is {stored} in SQL")
            demand(await sql.value(agent, "before") is None, "I2: a delete never reached SQL")


@toothed(the_first_pass)
async def test_i16_a_durable_that_begins_refuses_nobody(cenote_servers: TestServers) -> None:
    """All that KV holds is flushed and passes the fence once more: it does not wait for SQL."""
    small = {"flush__backlog_count_max": 100, "flush__batch_count_max": 20, "flush__threshold_count": 10}
    async with cenote.open(**cenote_servers.fresh(**QUICK, **small)) as store:
        agent, released = store.agent("pass"), asyncio.Event()
        for number in range(130):
            await eventually(lambda number=number: accepted(agent, f"k{number}"), "I16: writes are refused")  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        await store.flush(20)
        core, flusher = store._core, store._machines.flusher
        assert flusher is not None
        with at(flush_taken=released.wait, hold=True) as crossed:
            assert core.durable_name is not None
            await core.link.api(f"CONSUMER.DELETE.{core.stream.name}.{core.durable_name}")
            await reached(lambda: crossed.get("flush.taken"), "the first flush of the new durable")
            await core.probe_once()
            assert core.fullness.backlog >= 100, "nothing is delivered once more"
            demand(await accepted(agent, "new"), "I16: a write is refused for what is flushed")
            released.set()
        await store.flush(20)


@toothed(the_brim, the_reserve)
async def test_i13_reads_and_deletes_go_on_while_kv_is_full(cenote_servers: TestServers) -> None:
    """A flush that hangs pins the floor: nothing can be evicted."""
    released = asyncio.Event()
    settings = cenote_servers.fresh(**QUICK, kv__bytes_max=MIB, memory__ttl_s=1)
    async with cenote.open(**settings) as store, another(store) as other, tables(cenote_servers, store) as sql:
        agent = store.agent("brim")
        for number in range(12):
            await agent.put(f"cold{number}", f"{number} {BIG}")
        assert await evict_all(store) >= 10
        with at(flush_taken=released.wait, hold=True) as crossed:
            await agent.put("pin", 1)
            await reached(lambda: crossed.get("flush.taken"), "a flush that holds an entry")
            refused = await filled(store, agent)
            full = (await store._core.stream.info()).bytes / MIB
            demand(0.85 < full <= 0.93, f"I15: writes were taken up to {full:.0%}: nothing is left for tombstones")
            await other._core.probe_once()
            for one in (agent, other.agent("brim")):
                for number in range(6):
                    demand(await one.get(f"cold{number}") == f"{number} {BIG}", "I13: a read fails for a full KV")
            demand(await in_kv(agent, "cold1") is None, "I15: a copy was made where there is hardly room for writes")
            await refused_typed(agent)
            await agent.delete("cold11")
            await agent.delete("k0")
            assert await agent.get("cold11") is None
            released.set()
        await eventually(lambda: accepted(agent, "after"), "I16: writes are refused after the flush went on")
        await store.flush(20)
        demand(await sql.value(agent, "cold11") is None, "I2: a delete never reached SQL")
        for key in refused:
            demand(await sql.value(agent, key) is None, f"I12: {key} was refused, and is there")


@toothed(the_cry_for_room, the_flusher_without_room)
async def test_i16_a_server_without_room_gets_what_can_be_evicted(cenote_servers: TestServers, tmp_path: Path) -> None:
    """Another stream has taken all the disk that the server may use: our own is far from its limit."""
    limited = f'jetstream {{ store_dir: "{tmp_path / "store"}", max_file_store: 4MB }}\n'
    with running(tmp_path, limited) as server:
        settings = cenote_servers.by_url(**QUICK, kv__bytes_max=MIB) | {
            "kv": server.url, "kv__user": USER, "kv__password": server.password,
        }  # fmt: skip
        async with cenote.open(**settings) as store:
            agent, link = store.agent("disk"), store._core.link
            for number in range(30):
                await agent.put(f"k{number}", f"{number} {BIG}")
            await store.flush(20)
            await link.api("STREAM.CREATE.GREEDY", {"name": "GREEDY", "subjects": ["greedy"], "storage": "file"})
            for _ in range(400):
                if b"error" in (await link.request("greedy", b"", b"x" * 50_000, 5_000)).payload:
                    break
            with pytest.raises(cenote.BackpressureError) as refused:
                await agent.put("new", 1)
            assert refused.value.retryable

            async def evicted() -> bool:
                return store._core.counts.evicted >= 10

            assert store._core.fullness.share < 0.7
            await eventually(evicted, "I16: flushed entries stay where a server has no room for new ones")
            await link.api("STREAM.DELETE.GREEDY")
            demand(await agent.get("new") is None, "I12: a refused write is there")
            await eventually(lambda: accepted(agent, "new"), "I16: writes are refused though there is room")
            for number in range(30):
                demand(await agent.get(f"k{number}") == f"{number} {BIG}", "I11: a write was lost at its eviction")


# --- within -------------------------------------------------------------------------------------------------


async def accepted(agent: AgentState, key: str) -> bool:
    """Whether a write is taken now."""
    try:
        await agent.put(key, 1)
    except cenote.BackpressureError:
        await asyncio.sleep(0.02)
        return False
    return True


async def storm(agent: AgentState, keys: list[str]) -> list[str]:
    """Write all of them at once; the refused ones."""
    outcomes = await asyncio.gather(*(agent.put(key, key) for key in keys), return_exceptions=True)
    errors = [one for one in outcomes if isinstance(one, BaseException)]
    assert all(isinstance(error, cenote.BackpressureError) for error in errors)
    return [key for key, outcome in zip(keys, outcomes, strict=True) if isinstance(outcome, BaseException)]


async def filled(store: Store, agent: AgentState) -> list[str]:
    """Write until a write is refused twice, with a look in between; the keys that were refused last."""
    refused: list[str] = []
    for number in range(200):
        try:
            await agent.put(f"k{number}", f"{number} {BIG}")
            refused.clear()
        except cenote.BackpressureError:
            refused.append(f"k{number}")
            await store._core.probe_once()
        if len(refused) == 2:
            break
    return refused


async def refused_typed(agent: AgentState) -> None:
    """What would need room is refused by name, before anything happened."""
    with pytest.raises(cenote.BackpressureError):
        await agent.put("new", BIG, if_version=0)
    with pytest.raises(cenote.BackpressureError):
        await agent.update("cold7", lambda value: value)
    with pytest.raises(cenote.BackpressureError):
        await agent.hydrate()
