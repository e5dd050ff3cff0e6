"""Restores: new versions over what is not newer than their moment, at once or clearly in progress."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from cli_run import Cli

import cenote
from cenote import limits
from cenote.agent import AgentState
from cenote.engine.restore import Restorer
from cenote.store import Store
from cenote.testing import TestServers
from witness import another, at, demand, evict_all, toothed


async def state(agent: AgentState) -> dict[str, Any]:
    return {key: value async for key, value in agent.items()}


async def filled(agent: AgentState, count: int = 20) -> dict[str, Any]:
    was: dict[str, Any] = {f"k{n}": {"n": n} for n in range(count)}
    await agent.put_many(was)
    return was


async def test_an_agent_is_again_what_it_was(cenote_store: Store) -> None:
    agent, other = cenote_store.agent("scout"), cenote_store.agent("other")
    await other.put("mine", 1)
    was = await filled(agent) | {"big": "x" * 700_000, "bytes": b"\x00\xff", "seen": cenote.ORSet(["a"])}
    await agent.put_many({key: was[key] for key in ("big", "bytes")})
    await agent.put("seen", was["seen"])
    await agent.put("brief", 1, ttl=timedelta(seconds=1))
    await agent.put("long", 1, ttl=timedelta(hours=1))
    was["long"], ends = 1, (await agent.entry("long")).expires_at
    mark = await agent.checkpoint()
    old = (await agent.entry("k1")).version
    await agent.put_many({"k1": "new", "fresh": 1, "big": "y" * 600_000, "bytes": b""})
    for gone in ("k2", "long"):
        await agent.delete(gone)
    await agent.update("seen", lambda seen: seen.add("b"))
    changed = await state(agent)
    await cenote_store.flush(20)
    await evict_all(cenote_store)
    async with another(cenote_store) as store:
        done = await store.agent("scout").restore(mark.id)
        assert done.left == ()
        assert done.at_once
        assert (done.written, done.deleted) == (6, 1)
        now = await state(store.agent("scout"))
        assert now.keys() - {"brief"} == was.keys()
        assert set(now.pop("seen")) == {"a"}
        assert now | {"brief": 1} == {key: one for key, one in was.items() if key != "seen"} | {"brief": 1}
        assert (await store.agent("scout").entry("long")).expires_at == ends
    assert (await agent.entry("k1")).version > old
    await cenote_store.flush(20)
    await evict_all(cenote_store)
    assert await agent.get("big") == was["big"]
    undone = await agent.restore(done.before)
    again = await state(agent)
    assert again.keys() - {"brief"} == changed.keys() - {"brief"}
    assert (again["k1"], again["big"], set(again["seen"])) == ("new", "y" * 600_000, {"a", "b"})
    assert undone.checkpoint == done.before
    assert await state(other) == {"mine": 1}


def believing_the_checkpoint(patch: pytest.MonkeyPatch) -> None:
    """What others wrote since the restore's moment counts for nothing."""

    def all_of_it(self: Restorer, change: Any, base: Any, *, missed: bool) -> bool:
        return change.content.deleted and not base.live

    patch.setattr(Restorer, "_overtaken", all_of_it)


@toothed(believing_the_checkpoint)
async def test_what_others_write_after_its_moment_stays(cenote_store: Store) -> None:
    agent = cenote_store.agent("scout")
    await filled(agent)
    mark = await agent.checkpoint()
    await agent.put_many({"k1": "old", "k2": "old", "k3": "old", "fresh": 1})

    async def others() -> None:
        async with another(cenote_store) as store:
            await store.agent("scout").put("k1", "theirs")
            await store.agent("scout").delete("k2")
            await store.agent("scout").put("fresh", "theirs")

    with at(restore_kept=others):
        done = await agent.restore(mark)
    now = await state(agent)
    demand(now.get("k1") == "theirs", "I1: an acknowledged write is lost")
    demand("k2" not in now, "I2: a delete that was acknowledged is undone")
    demand(now.get("fresh") == "theirs", "I1: an acknowledged write is lost")
    assert sorted(done.left) == ["fresh", "k1", "k2"]
    assert (now["k3"], done.written) == ({"n": 3}, 1)


def without_a_batch(patch: pytest.MonkeyPatch) -> None:
    """Each key is written on its own."""
    patch.setattr(limits, "ATOMIC_KEYS_MAX", 1)


@toothed(without_a_batch)
async def test_readers_see_the_old_state_or_the_new_one(cenote_store: Store) -> None:
    agent = cenote_store.agent("scout")
    was = await filled(agent, 5)
    mark = await agent.checkpoint()
    await agent.put_many(dict.fromkeys(was, "new"))

    async def look() -> None:
        async with another(cenote_store) as store:
            seen = await store.agent("scout").get_many(was)
            demand(seen in (was, dict.fromkeys(was, "new")), f"I9: half a restore was seen: {seen}")

    with at(batch_sent=look, restore_batch=look):
        await agent.restore(mark)
    assert await agent.get_many(was) == was


async def test_a_large_one_is_in_progress_until_somebody_finishes_it(
    cenote_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ATOMIC_KEYS_MAX", 7)
    agent = cenote_store.agent("scout")
    was = await filled(agent)
    mark = await agent.checkpoint()
    now = dict.fromkeys(was, "new") | {"fresh": 1}
    await agent.put_many(now)

    async def die() -> None:
        raise ZeroDivisionError

    with at(restore_batch=die), pytest.raises(ZeroDivisionError):
        await agent.restore(mark)
    async with another(cenote_store) as store:
        theirs = store.agent("scout")
        going_on = await theirs.restoring()
        assert going_on is not None
        assert (going_on.checkpoint, going_on.agents) == (mark.id, ("scout",))
        half = await state(theirs)
        assert half not in (was, now)
        await theirs.put("k3", "since")
        done = await theirs.finish_restore()
        assert [one.left for one in done] == [("k3",)]
        assert await theirs.restoring() is None
        assert await state(theirs) == was | {"k3": "since"}
        assert await theirs.finish_restore() == []
        with at(restore_batch=die), pytest.raises(ZeroDivisionError):
            await theirs.restore(going_on.before)
        assert (await theirs.restore(mark)).left == ()
        assert await state(theirs) == was


async def test_several_that_restore_at_once_do_no_harm(cenote_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ATOMIC_KEYS_MAX", 7)
    agent = cenote_store.agent("scout")
    was = await filled(agent)
    mark = await agent.checkpoint()
    await agent.put_many(dict.fromkeys(was, "new") | {"fresh": 1})
    async with another(cenote_store) as store:
        theirs = store.agent("scout")
        await asyncio.gather(agent.restore(mark), theirs.restore(mark), agent.restore(mark), theirs.finish_restore())
        assert await theirs.restoring() is None
        assert await state(theirs) == was


async def test_without_batches_it_is_in_progress(cenote_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = cenote_store.agent("scout")
    was = await filled(agent)
    mark = await agent.checkpoint()
    await agent.put_many({"k1": "new", "fresh": 1})

    async def no() -> bool:
        return False

    monkeypatch.setattr(cenote_store._machines.atomic, "able", no)
    done = await agent.restore(mark)
    assert (done.at_once, done.written, done.deleted) == (False, 1, 1)
    assert await state(agent) == was


async def test_who_restores_what_is_not_there_learns_what_is_wrong(cenote_store: Store) -> None:
    agent = cenote_store.agent("scout")
    await filled(agent)
    theirs = await cenote_store.agent("theirs").checkpoint()
    with pytest.raises(cenote.NotFoundError):
        await agent.restore(theirs)
    assert not await agent.checkpoints()


async def test_a_swarm_is_restored_at_one_moment(cenote_store: Store) -> None:
    agents = [cenote_store.agent(name) for name in ("one", "two", "three")]
    marks = []
    for agent in agents:
        await filled(agent, 3)
        marks.append(await agent.checkpoint())
        await agent.put("k0", "new")
    done = await cenote_store.restore(marks)
    assert [(one.agent, one.written, one.at_once) for one in done] == [(agent.name, 1, True) for agent in agents]
    assert len({(await agent.entry("k0")).version.revision for agent in agents}) == 3
    assert [await agent.get("k0") for agent in agents] == [{"n": 0}] * 3
    assert len({one.before.version for one in done}) == 1
    with pytest.raises(cenote.RejectedError):
        await cenote_store.restore([marks[0], marks[0]])


def test_from_the_command_line(cenote_servers: TestServers, capsys: pytest.CaptureFixture[str]) -> None:
    fresh = cenote_servers.fresh()
    cli = Cli(capsys, ["--data-dir", str(fresh["data_dir"]), "--namespace", fresh["namespace"]])
    cli("put", "scout", "plan", "1")

    async def marked() -> str:
        async with cenote.open(**fresh) as store:
            return str((await store.agent("scout").checkpoint()).id)

    mark = asyncio.run(marked())
    cli("put", "scout", "plan", "2")
    cli("put", "scout", "fresh", "3")
    (done,) = cli("restore", "scout", mark, "--json").json
    assert (done["written"], done["deleted"], done["left"]) == (1, 1, [])
    assert cli("get", "scout", "plan").out == "1\n"
    assert "2 keys written, 0 deleted" in cli("restore", "scout", done["before"]).out
    assert cli("get", "scout", "fresh").out == "3\n"
    assert "no restore was left" in cli("restore", "scout").out
    assert cli("restore", "other", mark).code == 1
    assert "begins as checkpoint" in cli("fork", "scout", mark, "twin").out
    assert cli("get", "twin", "plan").out == "1\n"
    assert "exists already" in cli("fork", "scout", mark, "twin").err
