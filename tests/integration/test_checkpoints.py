"""Checkpoints: consistent cuts, kept as bases and deltas, and read back."""

import asyncio
import json
import random
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from cli_run import Cli

import cenote
from cenote import limits
from cenote.agent import AgentState
from cenote.engine.checkpoint import Checkpoint
from cenote.engine.retention import Retention
from cenote.model import value as values
from cenote.model.uuid7 import uuid7
from cenote.store import Store
from cenote.testing import TestServers
from witness import another, demand, evict_all, tables


async def held(agent: AgentState, mark: Checkpoint) -> dict[str, Any]:
    """All that a checkpoint holds, as it is stored."""
    found: dict[str, Any] = {}
    async for page in agent._machines.checkpoints.fold(agent._agent, mark.seq):
        for kept in page:
            assert kept.key not in found
            stored = await agent._core.blobs.resolve(kept) if kept.codec == "b" else kept
            found[kept.key] = values.decode(stored.codec, stored.body)
    return found


async def test_a_checkpoint_holds_what_was_and_nothing_else(cenote_store: Store) -> None:
    agent, other = cenote_store.agent("scout"), cenote_store.agent("another")
    await other.put("not mine", 0)
    empty = await agent.checkpoint()
    was: dict[str, Any] = {f"k{n}": {"n": n, "text": "ä\x00" * n} for n in range(30)}
    was |= {"a.b c\ud800": b"bytes", "big": "x" * 700_000, "odd": -0.0}
    await agent.put_many(was)
    first = await agent.checkpoint("first", metadata={"why": [1]}, keep=True)
    await agent.delete("k3")
    await agent.put("k4", "new")
    await agent.put("fresh", 1)
    second = await agent.checkpoint("second")
    await cenote_store.flush(20)
    await evict_all(cenote_store)
    third = await agent.checkpoint()
    async with another(cenote_store) as store:
        fourth = await store.agent("scout").checkpoint()
    now = was | {"k4": "new", "fresh": 1}
    del now["k3"]
    assert [await held(agent, mark) for mark in (empty, first, second, third, fourth)] == [{}, was, now, now, now]
    assert (second.parent, second.changed, second.removed) == (first.id, 2, 1)
    assert (third.changed, fourth.changed, fourth.seq) == (0, 0, 5)
    assert first.metadata == {"why": [1]}
    assert first.version < second.version <= third.version
    page = await agent.checkpoints(limit=2)
    rest = await agent.checkpoints(cursor=page.next)
    assert [*page, *rest] == [fourth, third, second, first, empty]
    assert await agent.find_checkpoint(str(first.id)) == first


async def test_who_asks_for_what_is_not_his_learns_nothing(cenote_store: Store) -> None:
    theirs = await cenote_store.agent("theirs").checkpoint()
    told = set()
    for unknown in (theirs.id, uuid4(), "no id"):
        with pytest.raises(cenote.NotFoundError) as error:
            await cenote_store.agent("mine").find_checkpoint(unknown)
        told.add(str(error.value))
    demand(len(told) == 1, "I14: an unknown id and another agent's are told apart")
    with pytest.raises(cenote.RejectedError, match="label"):
        await cenote_store.agent("mine").checkpoint("")


async def test_what_was_is_read_without_restoring_it(cenote_store: Store) -> None:
    agent = cenote_store.agent("scout")
    await agent.put_many({"a": 1, "b": {"x": 1}, "gone": 1, "big": "x" * 700_000, "same": [1]})
    await agent.put("brief", 1, ttl=timedelta(hours=1))
    first = await agent.checkpoint()
    await agent.put_many({"a": 2, "new": 1, "same": [1]})
    await agent.delete("gone")
    second = await agent.checkpoint()
    await agent.put("a", 3)
    await cenote_store.flush(20)
    await evict_all(cenote_store)
    assert await agent.get("a", at=first) == 1
    assert await agent.get("a", at=str(second.id)) == 2
    assert await agent.get("a") == 3
    assert await agent.get("big", at=first.id) == "x" * 700_000
    assert await agent.get("gone", "nothing", at=second) == "nothing"
    assert {key async for key, _ in agent.items(at=first)} == {"a", "b", "gone", "big", "same", "brief"}
    assert {key: value async for key, value in agent.items("n", at=second)} == {"new": 1}
    there, back = await agent.diff(first, second), await agent.diff(second, first)
    assert (there.added, there.removed, there.changed) == (("new",), ("gone",), ("a",))
    assert (back.added, back.removed, back.changed) == (("gone",), ("new",), ("a",))
    assert not await agent.diff(second, second)
    history = await agent.history("a")
    assert [(one.value, one.seq) for one in history.versions] == [(1, 1), (2, 2)]
    assert not history.complete
    assert [one.deleted for one in (await agent.history("gone")).versions] == [False, True]
    with pytest.raises(cenote.NotFoundError):
        await cenote_store.agent("another").get("a", at=first)


async def test_what_expired_before_a_cut_is_not_in_it(cenote_store: Store) -> None:
    agent = cenote_store.agent("scout")
    await agent.put("brief", 1, ttl=timedelta(seconds=1))
    first = await agent.checkpoint()
    assert await held(agent, first) == {"brief": 1}
    await asyncio.sleep(1.1)
    assert await held(agent, await agent.checkpoint()) == {}
    assert await held(agent, first) == {"brief": 1}


async def test_a_checkpoint_that_cannot_be_read_says_why(cenote_store: Store) -> None:
    agent = cenote_store.agent("scout")
    await agent.put_many({f"k{n}": n for n in range(10)})
    base = await agent.checkpoint()
    await agent.put("k1", 2)
    mark = await agent.checkpoint()
    schema = cenote_store.config.names.schema("agents")
    db = cenote_store._core.db

    async def refused(error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            await held(agent, mark)
        with pytest.raises(error, match=words):
            await agent.get("k5", at=mark)
        with pytest.raises(error, match=words):
            await agent.restore(mark)
        assert await agent.get("k1") == 2

    parts, rows = f"{schema}.checkpoint_parts", f"{schema}.checkpoints"
    await db.execute(f"UPDATE {rows} SET format = 2 WHERE seq = 1")
    await refused(cenote.CodecError, "format 2")
    await db.execute(f"UPDATE {rows} SET format = 1")
    await db.execute(f"UPDATE {parts} SET data = overlay(data PLACING '7' FROM octet_length(data) - 2)")
    await refused(cenote.ConsistencyError, "damaged")
    await db.execute(f"DELETE FROM {parts}")
    await refused(cenote.ConsistencyError, "missing")
    await db.execute(f"UPDATE {rows} SET kv_revision = kv_revision + 1 WHERE seq = 1")
    await refused(cenote.ConsistencyError, "damaged")
    await db.execute(f"ALTER TABLE {rows} DROP CONSTRAINT checkpoints_parent_id_fkey")
    await db.execute(f"DELETE FROM {rows} WHERE seq = 1")
    await refused(cenote.ConsistencyError, "gone")
    assert base.id == mark.parent


async def test_sql_sees_what_a_checkpoint_holds(cenote_servers: TestServers, cenote_store: Store) -> None:
    agent = cenote_store.agent("scout")
    await agent.put_many({"a": 1, "b": "\x00", "gone": 1})
    await agent.checkpoint()
    await agent.delete("gone")
    await agent.put("a", {"x": [1]})
    await agent.checkpoint()
    async with tables(cenote_servers, cenote_store) as sql:
        found = await sql.link.fetch(f"SELECT state_snapshot FROM {sql.schema}.state_snapshot ORDER BY checkpoint_id")
    assert [json.loads(row[0]) for row in found] == [{"a": 1, "b": "\x00", "gone": 1}, {"a": {"x": [1]}, "b": "\x00"}]


def test_the_command_line_keeps_looks_compares_and_restores(
    cenote_servers: TestServers, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = cenote_servers.fresh()
    cli = Cli(capsys, ["--data-dir", str(fresh["data_dir"]), "--namespace", fresh["namespace"]])
    assert cli("checkpoint", "list", "scout").code == 1
    cli("put", "scout", "plan", '{"step": 1}')
    first = cli("checkpoint", "create", "scout", "--label", "before").out.strip()
    cli("put", "scout", "plan", '{"step": 2}')
    cli("put", "scout", "wet", "true")
    second = cli("checkpoint", "create", "scout", "--json").json["id"]
    listed = cli("checkpoint", "list", "scout", "--json").json["checkpoints"]
    assert [(one["id"], one["label"]) for one in listed] == [(second, None), (first, "before")]
    assert cli("checkpoint", "diff", "scout", first, second).out.splitlines() == ["+ wet", "~ plan"]
    assert cli("checkpoint", "diff", "scout", first, first).code == 1
    assert cli("checkpoint", "diff", "other", first, second).code == 1
    kept = cli("history", "scout", "plan", "--json").json
    assert [one["value"] for one in kept["versions"]] == [{"step": 1}, {"step": 2}]
    assert kept["complete"] is False
    assert cli("checkpoint", "restore", "scout", first).code == 0
    assert cli("get", "scout", "plan", "--json").json["value"] == {"step": 1}


async def test_several_agents_are_kept_at_one_moment_or_not_at_all(cenote_store: Store) -> None:
    """Amounts move between two agents; any moment has the same sum within one, and a group is of one moment."""
    left, right = cenote_store.agent("left"), cenote_store.agent("right")
    await left.put("n", 0)
    await right.put("n", 0)
    done = False

    async def count() -> None:
        number = 0
        while not done:
            number += 1
            await left.put("n", number)
            await right.put("n", number)

    counting = asyncio.create_task(count())
    groups = [await cenote_store.checkpoint(["left", "right"], "both") for _ in range(20)]
    done = True
    await counting
    seen = set()
    for one, other in groups:
        assert one.group == other.group is not None
        assert one.version == other.version
        numbers = await left.get("n", at=one), await right.get("n", at=other)
        assert numbers[0] - numbers[1] in (0, 1)  # left is written first
        seen.add(numbers)
    assert len(seen) > 1


async def _kept(agent: AgentState) -> list[int]:
    return [one.seq for one in await agent.checkpoints(limit=1000)]


async def test_retention_keeps_what_it_is_told_to_and_what_that_stands_on(cenote_servers: TestServers) -> None:
    """The survivors hold what they held, large values too; parts and references of the others are gone."""
    async with cenote.open(**cenote_servers.fresh(checkpoints__last=3)) as store:
        agent, other = store.agent("scout"), store.agent("other")
        held: dict[int, dict[str, object]] = {}
        for number in range(12):
            await agent.put(f"k{number % 5}", number)
            await agent.put("large", random.Random(number).randbytes(700_000))
            mark = await agent.checkpoint(keep=number == 4)
            held[mark.seq] = {key: value async for key, value in agent.items()}
        await other.put("k", 1)
        await other.checkpoint()
        retention = Retention(store._core, store._machines.checkpoints)
        await retention.tend()
        await retention.tend()
        assert await _kept(agent) == [12, 11, 10, 5]
        assert await _kept(other) == [1]
        for seq in (12, 11, 10, 5):
            mark = next(one for one in await agent.checkpoints() if one.seq == seq)
            assert {key: value async for key, value in agent.items(at=mark)} == held[seq], seq
        async with tables(cenote_servers, store) as sql:
            parts = await sql.link.fetchval(
                f"SELECT count(*) FROM {sql.schema}.checkpoint_parts AS p"
                f" WHERE NOT EXISTS (SELECT FROM {sql.schema}.checkpoints AS c WHERE c.data_id = p.data_id)"
            )
            blobs = await sql.link.fetchval(f"SELECT count(DISTINCT blob_id) FROM {sql.schema}.checkpoint_blobs")
        assert parts == 0
        assert blobs == 4
        following = await agent.checkpoint()
        assert following.seq == 13
        assert {key: value async for key, value in agent.items(at=following)} == held[12]


async def test_a_checkpoint_is_deleted_and_those_that_stand_on_it_stay_whole(cenote_store: Store) -> None:
    agent = cenote_store.agent("scout")
    marks, held = [], []
    for number in range(5):
        await agent.put_many({"a": number, f"k{number}": number})
        marks.append(await agent.checkpoint())
        held.append({key: value async for key, value in agent.items()})
    for gone in (0, 2, 4):
        await agent.delete_checkpoint(marks[gone])
        with pytest.raises(cenote.NotFoundError):
            await agent.get("a", at=marks[gone])
    with pytest.raises(cenote.NotFoundError):
        await agent.delete_checkpoint(marks[0])
    with pytest.raises(cenote.NotFoundError):
        await cenote_store.agent("other").delete_checkpoint(marks[1])
    for left in (1, 3):
        assert {key: value async for key, value in agent.items(at=marks[left])} == held[left]
    await agent.put("a", "after")
    last = await agent.checkpoint()  # what it would have stood on is gone
    assert await agent.get("a", at=last) == "after"
    assert await agent.get("k4", at=last) == 4


async def test_parts_whose_checkpoint_never_came_are_removed_after_a_day(
    cenote_servers: TestServers, cenote_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = cenote_store.agent("scout")
    await agent.put("a", 1)
    mark = await agent.checkpoint()
    table = cenote_store._machines.checkpoints.table
    await table.put_parts(uuid7(), 0, [b"[]"])
    retention = Retention(cenote_store._core, cenote_store._machines.checkpoints)
    await retention.tend()
    async with tables(cenote_servers, cenote_store) as sql:
        count = f"SELECT count(*) FROM {sql.schema}.checkpoint_parts"
        assert await sql.link.fetchval(count) == 2
        monkeypatch.setattr(limits, "CHECKPOINT_ORPHAN_S", -1)
        await retention.tend()
        assert await sql.link.fetchval(count) == 1
    assert await agent.get("a", at=mark) == 1
