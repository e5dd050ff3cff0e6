"""Forks: one row until somebody reads, and two agents that know nothing of each other from then on."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

import cenote
from cenote.agent import AgentState
from cenote.engine import entries
from cenote.model.entry import Version
from cenote.sql.forks import ForkRow, ForkTable
from cenote.sql.rows import Row
from cenote.store import Store
from cenote.testing import TestServers
from witness import another, at, demand, evict_all, in_kv, toothed


async def state(agent: AgentState) -> dict[str, Any]:
    return {key: value async for key, value in agent.items()}


async def watched(agent: AgentState, count: int) -> dict[str, Any]:
    """The first so many keys that a watch from the beginning shows."""
    seen: dict[str, Any] = {}
    async with asyncio.timeout(10):
        async for entry in agent.watch(since=0):
            seen[entry.key] = entry.value
            if len(seen) == count:
                break
    return seen


async def copies(store: Store, agent: AgentState) -> int:
    return len(await store._core.table.page(agent._agent.id, None, "", 1000, live_only=False))


async def test_a_fork_begins_as_the_checkpoint_and_goes_its_own_way(cenote_store: Store) -> None:
    source = cenote_store.agent("source")
    was = {f"k{n}": {"n": n} for n in range(20)}
    was |= {"big": "x" * 700_000, "bytes": b"\x00\xff", "a.b\x00c": "ÿ", "set": cenote.ORSet(["a"])}
    await source.put_many(was)
    await source.put("brief", 1, ttl=timedelta(hours=1))
    ends = (await source.entry("brief")).expires_at
    await source.delete("k0")
    mark = await source.checkpoint()
    await source.put_many({"k1": "later", "new": 1, "big": "other"})
    fork = await source.fork("fork", mark.id)
    assert await copies(cenote_store, fork) == 0
    await fork.put("k2", "own")
    await fork.delete("k3")
    await cenote_store.flush(20)
    await evict_all(cenote_store)
    async with another(cenote_store) as store:
        there = store.agent("fork")
        expected = {key: one for key, one in was.items() if key not in ("k0", "k3")} | {"k2": "own", "brief": 1}
        assert await there.get("k3") is None
        assert await copies(store, there) == 2
        assert await there.get("k4") == {"n": 4}
        found = await state(there)
        assert set(found.pop("set")) == set(expected.pop("set"))
        assert found == expected
        entry = await there.entry("brief")
        assert (entry.expires_at, str(Version.parse(str(entry.version)))) == (ends, str(entry.version))
        assert (await there.update("k4", lambda one: one | {"m": 1})).value == {"n": 4, "m": 1}
        with pytest.raises(cenote.ConflictError):
            await there.put("k5", "created", if_version=0)
        await there.put("k6", "seen", if_version=await there.entry("k6"))
    assert (await source.get("k1"), await source.get("k6"), await source.get("big")) == ("later", {"n": 6}, "other")
    assert [one.name async for one in _listed(cenote_store)] == ["fork", "source"]


async def _listed(store: Store) -> Any:
    for one in (await store.agents.list()).items:
        yield one


async def test_what_exists_is_not_forked_over(cenote_store: Store) -> None:
    source, other = cenote_store.agent("source"), cenote_store.agent("other")
    await source.put("k", 1)
    mark = await source.checkpoint()
    await other.put("mine", 1)
    with pytest.raises(cenote.AlreadyExistsError):
        await source.fork("other", mark)
    await cenote_store.flush(20)
    await evict_all(cenote_store)
    with pytest.raises(cenote.AlreadyExistsError):
        await source.fork("other", mark)
    await source.fork("fork", mark)
    with pytest.raises(cenote.AlreadyExistsError):
        await source.fork("fork", mark)
    with pytest.raises(cenote.NotFoundError):
        await other.fork("another", mark)
    with pytest.raises(cenote.RejectedError):
        await source.fork("", mark)
    assert await cenote_store.agent("another").get("k") is None


async def test_the_checkpoint_of_a_fork_is_whole(cenote_store: Store) -> None:
    source = cenote_store.agent("source")
    await source.put_many({f"k{n}": n for n in range(5)})
    fork = await source.fork("fork", await source.checkpoint())
    await fork.put("k0", "own")
    mark = await fork.checkpoint()
    assert {key: one async for key, one in fork.items(at=mark)} == {"k0": "own", "k1": 1, "k2": 2, "k3": 3, "k4": 4}
    third = await fork.fork("third", mark)
    assert await third.get_many(["k0", "k1", "none"]) == {"k0": "own", "k1": 1}


async def test_a_checkpoint_that_a_fork_needs_is_copied_before_it_goes(cenote_store: Store) -> None:
    source = cenote_store.agent("source")
    await source.put("k", "v")
    mark = await source.checkpoint()
    fork = await source.fork("fork", mark)
    await source.put("k", "w")
    await source.checkpoint()
    assert await cenote_store._machines.checkpoints.table.remove(source._agent.id, [mark.id]) == 0
    await source.delete_checkpoint(mark)
    assert await fork.get("k") == "v"


async def test_a_watch_from_the_beginning_shows_what_a_fork_holds(cenote_store: Store) -> None:
    source = cenote_store.agent("source")
    await source.put_many({"a": 1, "b": 2})
    fork = await source.fork("fork", await source.checkpoint())
    assert await watched(fork, 2) == {"a": 1, "b": 2}


def copying_without_the_mark(patch: pytest.MonkeyPatch) -> None:
    """Copies are made without the mark: whoever comes late does not notice that all has been copied long ago."""
    kept = ForkTable.copy

    async def copy(self: ForkTable, fork: ForkRow, rows: list[Row]) -> bool:
        await self._db.execute(
            "INSERT INTO {agents}.forks (agent_id, source_id, checkpoint_id) VALUES ($1, $2, $3)"
            " ON CONFLICT DO NOTHING".replace("{agents}", self._db.names.schema("agents")),
            fork.agent_id, fork.source_id, fork.checkpoint_id,
        )  # fmt: skip
        return await kept(self, fork, rows)

    patch.setattr(ForkTable, "copy", copy)


@toothed(copying_without_the_mark)
async def test_a_late_copy_brings_nothing_back(cenote_servers: TestServers) -> None:
    """The interleaving of rule 12: one process is about to copy; another copies everything; a key is deleted, and its
    tombstone collected; the first goes on."""
    async with cenote.open(**cenote_servers.fresh()) as store, another(store) as slow:
        source = store.agent("source")
        await source.put_many({"a": 1, "b": 2})
        fork = await source.fork("fork", await source.checkpoint())

        async def meanwhile() -> None:
            assert await fork.get("a") == 1
            await fork.delete("a")
            await store.flush(20)
            await evict_all(store)
            schema = store._core.names.schema("agents")
            await store._core.db.execute(f"DELETE FROM {schema}.state WHERE deleted")

        forks = slow._core.rows
        pending = await forks.marks.pending(fork._agent.id)
        with at(fork_copy=meanwhile):
            await forks._copy(pending[0])
        demand(await slow.agent("fork").get("a") is None, "I2: a deleted key of a fork came back")
        demand(await slow.agent("fork").get("b") == 2, "I1: a key of a fork is gone")


def marks_that_answer(patch: pytest.MonkeyPatch) -> None:
    """A mark that says "nobody has it" answers without a look at SQL."""
    patch.setattr(entries, "nobody", lambda _: False)


@toothed(marks_that_answer)
async def test_a_mark_from_before_the_fork_hides_nothing(cenote_store: Store) -> None:
    """Somebody has looked for a key of the agent before it was a fork, and says so in KV afterwards."""
    source = cenote_store.agent("source")
    await source.put_many({"a": 1, "b": 2})
    mark = await source.checkpoint()

    async def forked() -> None:
        await source.fork("fork", mark)

    async with another(cenote_store) as other:
        early = other.agent("fork")
        with at(hydrate_read=forked), pytest.raises(cenote.ConflictError):
            await early.put("a", 0, if_version=Version(1, 1))
        fork = cenote_store.agent("fork")
        held = await in_kv(fork, "a")
        assert held is not None  # the mark is there
        demand(await fork.get("a") == 1, "I1: a key of a fork is hidden")
        demand(await fork.get_many(["a", "b"]) == {"a": 1, "b": 2}, "I1: a key of a fork is hidden")
        demand(await state(other.agent("fork")) == {"a": 1, "b": 2}, "I1: a key of a fork is hidden")
        demand(await watched(fork, 2) == {"a": 1, "b": 2}, "I1: a key of a fork is hidden")
        with pytest.raises(cenote.ConflictError):
            await early.put("a", 0, if_version=0)
        demand((await early.update("a", lambda one: (one or 0) + 1)).value == 2, "I1: a key of a fork was built anew")
