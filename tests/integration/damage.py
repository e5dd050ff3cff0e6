"""Differences between KV and SQL, planted past cenote."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from cenote.agent import AgentState
from cenote.engine import entries
from cenote.engine.differences import Kind
from cenote.store import Store
from witness import Tables

Plant = Callable[[Store, Tables, AgentState, list[str]], Awaitable[None]]


async def in_sql(sql: Tables, agent: AgentState, names: list[str], change: str) -> None:
    await sql.link.execute(
        f"UPDATE {sql.schema}.state SET {change} WHERE agent_id = $1 AND key = ANY ($2::text[])", agent.id, names
    )


async def row_lost(_: Store, sql: Tables, agent: AgentState, names: list[str]) -> None:
    await sql.link.execute(
        f"DELETE FROM {sql.schema}.state WHERE agent_id = $1 AND key = ANY ($2::text[])", agent.id, names
    )


async def row_older(_: Store, sql: Tables, agent: AgentState, names: list[str]) -> None:
    await in_sql(sql, agent, names, "version = version - 1, value = '1'")


async def delete_lost(store: Store, sql: Tables, agent: AgentState, names: list[str]) -> None:
    for name in names:
        await agent.delete(name)
    await store.flush(20)
    await in_sql(sql, agent, names, "version = version - 1, value = '1', deleted = false")


async def row_changed(_: Store, sql: Tables, agent: AgentState, names: list[str]) -> None:
    await in_sql(sql, agent, names, "value = '1'")


async def entry_older(_: Store, sql: Tables, agent: AgentState, names: list[str]) -> None:
    await in_sql(sql, agent, names, "version = version + 1, value = '\"newer\"'")


async def copied(store: Store, agent: AgentState, names: list[str], body: bytes | None) -> None:
    """Each key has left KV, and a copy stands there: with this body, or of nothing at all."""
    core = store._core
    for name in names:
        target = core.target(agent._agent, name)
        row = await core.table.read(agent.id, target.row_key)
        assert row is not None
        await core.link.api(f"STREAM.PURGE.{core.stream.name}", {"filter": target.subject})
        stored = entries.ABSENT if body is None else msgspec.structs.replace(entries.from_row(row), body=body)
        put = store._machines.hydrator.install(
            target.wire, stored, t0_ms=core.now_ms(), over=0, generation=core.link.generation
        )
        assert await put is not None
    await store.flush(20)


async def copy_hides(store: Store, _: Tables, agent: AgentState, names: list[str]) -> None:
    await copied(store, agent, names, None)


async def copy_changed(store: Store, _: Tables, agent: AgentState, names: list[str]) -> None:
    await copied(store, agent, names, b"1")


async def unreadable(store: Store, sql: Tables, agent: AgentState, names: list[str]) -> None:
    core = store._core
    for name in names:
        core.link.send(core.target(agent._agent, name).wire, b"", b"junk")
    await store.flush(20)
    await row_lost(store, sql, agent, names)


PLANTS: dict[Plant, Kind] = {
    row_lost: Kind.SQL_MISSING,
    row_older: Kind.SQL_OLDER,
    delete_lost: Kind.TOMBSTONE,
    row_changed: Kind.CONTENT,
    entry_older: Kind.KV_OLDER,
    copy_hides: Kind.KV_OLDER,
    copy_changed: Kind.CONTENT,
    unreadable: Kind.UNREADABLE,
}


async def planted(store: Store, sql: Tables, agent: AgentState, each: int) -> tuple[dict[str, int], dict[str, Any]]:
    """Differences of each kind; how many of each, and what the agent must hold once they are mended."""
    expected: dict[str, Any] = {}
    found: dict[str, int] = {}
    for plant, kind in PLANTS.items():
        names = [f"{plant.__name__}-{n}" for n in range(each)]
        await agent.put_many({name: {"of": name} for name in names})
        await store.flush(20)
        expected |= {name: {"of": name} for name in names}
        if plant is delete_lost:
            expected = {name: value for name, value in expected.items() if name not in names}
        if plant is unreadable:
            expected = {name: value for name, value in expected.items() if name not in names}
        if plant is entry_older:
            expected |= dict.fromkeys(names, "newer")
        await plant(store, sql, agent, names)
        found[kind] = found.get(kind, 0) + each
    return found, expected


async def held(agent: AgentState) -> dict[str, Any]:
    found = {}
    async for key in agent.keys():
        if not key.startswith("unreadable"):
            found[key] = await agent.get(key)
    return found
