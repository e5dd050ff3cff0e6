"""The registry of agents: what each says of itself, in one flow with its state."""

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

import cenote
from cenote.engine.writer import Content, header_lines
from cenote.model.key import HEARTBEATS, PROFILES, RESERVED_IDS
from cenote.repositories import agents
from cenote.repositories.agents import Agent
from cenote.store import Store
from cenote.testing import TestServers
from witness import Tables, another, demand, eventually, evict_all, reached, tables

SCOUT = Agent(name="scout-7", type="scout", status="idle", metadata={"skills": ["dive"], "depth_m": 40})


async def registry(sql: Tables, agent_id: UUID) -> dict[str, Any]:
    row = await sql.link.fetchrow(f"SELECT * FROM {sql.schema}.registry WHERE agent_id = $1", agent_id)
    return {} if row is None else dict(row)


async def test_the_verbs(cenote_store: Store) -> None:
    store = cenote_store.agents
    with pytest.raises(cenote.NotFoundError):
        await store.find("scout-7")
    saved = await store.save(SCOUT)
    assert saved == await store.find("scout-7")
    assert saved.version is not None
    assert (saved.type, saved.status, saved.metadata) == ("scout", "idle", SCOUT.metadata)
    busy = await store.update(replace(saved, status="busy"))
    assert busy.version > saved.version
    with pytest.raises(cenote.ConflictError, match="scout-7"):
        await store.update(replace(saved, status="lost"))
    assert (await store.find("scout-7")).status == "busy"
    await store.heartbeat("scout-7", "diving")
    diving = await store.find("scout-7")
    assert (diving.status, diving.metadata) == ("diving", SCOUT.metadata)
    await store.delete("scout-7")
    await store.delete("nobody")
    for gone in ("scout-7", "nobody"):
        with pytest.raises(cenote.NotFoundError, match="no such agent"):
            await store.find(gone)
    with pytest.raises(cenote.NotFoundError):
        await store.update(diving)
    assert await store.save(SCOUT) != saved


async def test_who_merely_wrote_state_is_registered_with_defaults_until_it_says_more(cenote_store: Store) -> None:
    await cenote_store.agent("plain").put("k", 1)
    await cenote_store.agents.save(SCOUT)
    await cenote_store.flush(20)

    async def both() -> bool:
        return [one.name for one in await cenote_store.agents.list()] == ["plain", "scout-7"]

    await eventually(both, "both are registered")
    plain = await cenote_store.agents.find("plain")
    assert plain == Agent(name="plain", version=None)
    assert plain.id == cenote_store.agent("plain").id
    more = await cenote_store.agents.update(replace(plain, type="cook"))
    assert await cenote_store.agents.find(more.id) == more  # a hashed id leads to the name
    with pytest.raises(cenote.ConflictError):
        await cenote_store.agents.update(replace(plain, type="pilot"))
    await cenote_store.agents.delete("plain")
    with pytest.raises(cenote.NotFoundError):  # at once, though SQL still says otherwise
        await cenote_store.agents.find("plain")
    assert await cenote_store.agent("plain").get("k") == 1


ODD: dict[str, Any] = {
    "nul": "a\x00b", "tuple": (1, 2), "when": timedelta(days=1), "float": -0.0, "deep": {"a": [{"b": None}]},
    "\ud800": b"\x00", "id": UUID(int=5),
}  # fmt: skip


async def test_what_it_says_comes_back_as_it_was_from_every_tier(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        saved = await store.agents.save(Agent(name="odd \x00 name", type="x", metadata=ODD))
        await store.flush(20)
        assert await evict_all(store) > 0
        async with another(store) as other:
            found = await other.agents.find(saved.id)
            assert (found, repr(found.metadata)) == (saved, repr(ODD))

        async def listed() -> bool:
            return saved in (await store.agents.list()).items

        await eventually(listed, "SQL has it as it was said")
        (one,) = (await store.agents.list()).items
        assert repr(one.metadata["float"]) == "-0.0"


BAD: list[tuple[Any, str]] = [
    (Agent(name=""), "agent id"),
    (Agent(name="x" * 201), "200"),
    (Agent(name="a", type=""), "type: 1 to 100"),
    (Agent(name="a", status="x" * 101), "status: 1 to 100"),
    (Agent(name="a", status="a\x00"), "status"),
    (Agent(name="a", type=5), "type"),  # type: ignore[arg-type]  # that is the bad input
    (Agent(name="a", metadata=[1]), "metadata"),  # type: ignore[arg-type]  # the same
    (Agent(name="a", metadata={"x": "y" * 65_536}), "65536"),
    (Agent(name="a", metadata={"x": float("nan")}), "metadata"),
    ("scout-7", "agent: an Agent"),
]


async def test_what_is_no_agent_is_refused_before_anything_is_sent(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        for agent, words in BAD:
            for verb in (store.agents.save, store.agents.update):
                with pytest.raises(cenote.RejectedError, match=words):
                    await verb(agent)
        with pytest.raises(cenote.RejectedError, match="status"):
            await store.agents.heartbeat("a", "")
        assert store._core.own_sequence == 0


async def test_pages_are_in_the_order_of_names_and_cursors_cannot_be_made_up(cenote_store: Store) -> None:
    names = sorted(f"a{number}" for number in range(25))
    await asyncio.gather(*(cenote_store.agents.save(Agent(name=name)) for name in names))
    await cenote_store.flush(20)

    async def all_there() -> bool:
        return len(await cenote_store.agents.list()) == 25

    await eventually(all_there, "all are registered")
    found, cursor = [], None
    for size in (10, 10, 5):
        page = await cenote_store.agents.list(limit=10, cursor=cursor)
        assert len(page) == size
        found, cursor = found + [one.name for one in page], page.next
    assert (found, cursor) == (names, None)
    for forged in ("", "x", "QUJD" * 20):
        with pytest.raises(cenote.NotFoundError, match="no such page"):
            await cenote_store.agents.list(cursor=forged)
    for limit in (0, 1_001, True):
        with pytest.raises(cenote.RejectedError, match="limit"):
            await cenote_store.agents.list(limit=limit)


async def test_a_registry_that_refuses_stops_nobodys_flush_and_is_made_up_for(cenote_servers: TestServers) -> None:
    """I13, rule 23: first it fails altogether, then it refuses one of them."""
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        await sql.link.execute(f"ALTER TABLE {sql.schema}.registry RENAME COLUMN status TO away")
        await store.agents.save(SCOUT)
        (await store.agent("other").put("k", 1, durability="sql")).durability == "sql"  # noqa: B015  # it returned
        await sql.link.execute(f"ALTER TABLE {sql.schema}.registry RENAME COLUMN away TO status")

        async def healed() -> bool:
            return (await registry(sql, SCOUT.id)).get("status") == "idle"

        await eventually(healed, "I16: the registry catches up by itself")
        await sql.link.execute(f"ALTER TABLE {sql.schema}.registry ADD CONSTRAINT poison CHECK (status <> 'poison')")
        names = [f"b{number}" for number in range(8)]
        await asyncio.gather(*(store.agents.save(Agent(name=name, status="fine")) for name in names))
        await store.agents.save(replace(SCOUT, status="poison"))
        await store.flush(20)

        async def others() -> bool:
            query = f"SELECT count(*) FROM {sql.schema}.registry WHERE status = 'fine'"
            return bool(await sql.link.fetchval(query) == len(names))

        await eventually(others, "I13: one that is refused holds up the others")
        assert (await registry(sql, SCOUT.id))["status"] == "idle"
        assert (await store.agents.find("scout-7")).status == "poison"  # the state is authoritative


async def test_heartbeats_are_few_and_touch_no_index(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        saved = await store.agents.save(SCOUT)
        writes = store._core.counts.writes
        for _ in range(100):
            await store.agents.heartbeat("scout-7")
        assert store._core.counts.writes - writes <= 1
        monkeypatch.setattr(agents.limits, "HEARTBEAT_MS_MIN", 0)
        await store.agents.heartbeat("scout-7")
        await store.agents.heartbeat("newcomer")
        seen = await store.agents.find("scout-7")
        assert (seen, seen.version) == (saved, saved.version)
        assert seen.seen_at is not None
        assert saved.seen_at is not None
        assert seen.seen_at >= saved.seen_at
        await store.flush(20)
        before = await registry(sql, SCOUT.id)

        async def noted() -> bool:
            rows = [await registry(sql, one) for one in (SCOUT.id, store.agent("newcomer").id)]
            return all(row.get("seen_at") is not None for row in rows)

        await reached(noted, "signs of life in SQL")
        after = await registry(sql, SCOUT.id)
        assert {**after, "seen_at": None} == {**before, "seen_at": None}
        assert (await store.agents.find("newcomer")).version is None


async def test_nobody_meets_the_entries_behind_it(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        await store.agents.save(SCOUT)
        for reserved in (PROFILES, HEARTBEATS):
            state = store.agent(reserved.id)
            with pytest.raises(cenote.RejectedError, match="cenote alone writes"):
                await state.put("scout-7", 1)
            assert [key async for key in state.keys()] == ["scout-7"]
        await store.agent("scout-7").put("k", 1)
        async with aclosing(store.watch(since=0)) as entries:  # type: ignore[type-var]  # it is an asynchronous generator
            assert (await anext(entries)).agent == "scout-7"
        await store.flush(20)
        async with aclosing(store.changes(since=0)) as changes:  # type: ignore[type-var]  # the same
            assert (await anext(changes)).entry.agent == "scout-7"
        await asyncio.sleep(0.1)
        rows = await store._core.table.agents_page(None, 10)
        assert [row.name for row in rows] == ["scout-7"]
        assert RESERVED_IDS.isdisjoint(row.agent_id for row in rows)


async def test_a_status_is_set_once_however_many_set_it(cenote_store: Store) -> None:
    """Beside an update of the metadata by somebody else: neither is lost (I6)."""
    await cenote_store.agents.save(SCOUT)

    async def count() -> None:
        for _ in range(5):
            while True:
                found = await cenote_store.agents.find("scout-7")
                metadata = {**found.metadata, "n": found.metadata.get("n", 0) + 1}
                try:
                    await cenote_store.agents.update(replace(found, metadata=metadata))
                    break
                except cenote.ConflictError:
                    continue

    beats = [cenote_store.agents.heartbeat("scout-7", f"s{number}") for number in range(5)]
    await asyncio.gather(count(), count(), *beats)
    found = await cenote_store.agents.find("scout-7")
    demand(found.metadata["n"] == 10, f"I6: of 10 updates {found.metadata['n']} are there")
    assert found.status.startswith("s")


async def test_a_profile_written_by_nobody_stops_nothing(cenote_servers: TestServers) -> None:
    """What somebody publishes straight to NATS under a reserved subject."""
    async with cenote.open(**cenote_servers.fresh()) as store:
        core = store._core
        await store.agents.save(SCOUT)
        odd = {"odd": b"[1]", "x" * 300: json.dumps({"type": 5}).encode(), str(uuid4()): b"{"}
        for number, (name, body) in enumerate(odd.items()):
            wire = core.target(PROFILES, name).wire
            lines = header_lines(Content("j", body), f"stranger.{number}", core.format)
            await core.stream.publish_nowait(wire, lines, body, 5_000)
        await store.flush(20)
        await store.agent("other").put("k", 1, durability="sql")
        with pytest.raises(cenote.CodecError):
            await store.agents.find("odd")
