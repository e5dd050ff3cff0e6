"""Export and import: what comes in equals what went out, and a damaged file is refused with its place."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cli_run import Cli

import cenote
from cenote.agent import AgentState
from cenote.engine.checkpoint import Checkpoint
from cenote.model import value as values
from cenote.store import Store
from cenote.testing import TestServers


async def state(agent: AgentState) -> dict[str, Any]:
    return {key: value async for key, value in agent.items()}


async def held(agent: AgentState, mark: Checkpoint) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async for page in agent._machines.checkpoints.fold(agent._agent, mark.seq):
        for kept in page:
            stored = await agent._core.blobs.resolve(kept) if kept.codec == "b" else kept
            found[kept.key] = values.decode(stored.codec, stored.body)
    return found


async def exported(agent: AgentState) -> list[bytes]:
    """A past with a base, deltas and a removed key, as a file."""
    await agent.put_many({f"k{n}": {"n": n} for n in range(30)})
    await agent.put_many({"a.b ä\ud800": b"\x00\xff", "odd": -0.0, "big": "x" * 700_000})
    await agent.put("long", 1, ttl=timedelta(hours=1))
    await agent.checkpoint("first", metadata={"why": [1]}, keep=True)
    await agent.delete("k3")
    await agent.put_many({"k4": "new", "big": "y" * 600_000})
    await agent.checkpoint("second")
    await agent.put("k5", "newer")
    return [line async for line in agent.export()]


async def test_what_comes_in_equals_what_went_out(cenote_store: Store, cenote_servers: TestServers) -> None:
    agent = cenote_store.agent("scout")
    lines = await exported(agent)
    was, ends = await state(agent), (await agent.entry("long")).expires_at
    past = list(await agent.checkpoints())
    async with cenote.open(**cenote_servers.fresh()) as store:
        other = store.agent("scout")
        await store.agent("another").put("k", 1)
        await store.agent("another").checkpoint()
        done = await store.import_agent(lines)
        assert (done.agent, done.keys, done.checkpoints) == ("scout", len(was), 3)
        assert await state(other) == was
        assert (await other.entry("long")).expires_at == ends
        came = list(await other.checkpoints())
        ids = [(one.id, one.seq, one.label, one.metadata, one.keep, one.parent, one.digest, one.at) for one in past]
        assert [
            (one.id, one.seq, one.label, one.metadata, one.keep, one.parent, one.digest, one.at) for one in came[1:]
        ] == ids
        for ours, theirs in zip(past, came[1:], strict=True):
            assert await held(other, theirs) == await held(agent, ours)
        await other.put("k6", "changed")
        await other.restore(past[-1].id)
        assert await state(other) == await held(agent, past[-1])
        with pytest.raises(cenote.RejectedError, match="exists"):
            await store.import_agent(lines)


async def test_a_damaged_file_is_refused_with_the_place_named(cenote_store: Store, cenote_servers: TestServers) -> None:
    lines = await exported(cenote_store.agent("scout"))
    third = len(lines) // 2
    torn = [
        ([*lines[:third], lines[third].replace(b"1", b"2", 1), *lines[third + 1 :]], f"line {third + 1}:"),
        (lines[:third] + lines[third + 1 :], f"line {third + 1}:"),
        (lines[:-1], f"line {len(lines)}:"),
        ([*lines[:2], lines[2][:-40]], "line 3:"),
        ([*lines, b"x\n"], f"line {len(lines) + 1}:"),
        ([b"nonsense\n"], "line 1:"),
        ([], "line 1:"),
    ]
    async with cenote.open(**cenote_servers.fresh()) as store:
        for damaged, place in torn:
            with pytest.raises(cenote.CodecError, match=place):
                await store.import_agent(damaged)
        assert not await store.agent("scout").checkpoints()
        assert await state(store.agent("scout")) == {}
        assert (await store.import_agent(lines)).checkpoints == 3


def test_from_one_command_to_the_other(
    cenote_servers: TestServers, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    here, there = (
        Cli(capsys, ["--data-dir", str(fresh["data_dir"]), "--namespace", fresh["namespace"]])
        for fresh in (cenote_servers.fresh(), cenote_servers.fresh())
    )
    here("put", "scout", "plan", '{"step": "ä"}')
    file = tmp_path / "scout.export"
    file.write_text(here("export", "scout").out, encoding="utf-8")
    done = there("import", str(file), "--json").json
    assert (done["agent"], done["keys"], done["checkpoints"]) == ("scout", 1, 1)
    assert there("get", "scout", "plan", "--json").json["value"] == {"step": "ä"}
    assert there("import", str(file)).code != 0
