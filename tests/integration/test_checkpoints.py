"""Checkpoints: consistent cuts, kept as bases and deltas, and read back."""

from typing import Any
from uuid import uuid4

import pytest

import cenote
from cenote.agent import AgentState
from cenote.engine.checkpoint import Checkpoint
from cenote.model import value as values
from cenote.store import Store
from witness import another, demand, evict_all


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
