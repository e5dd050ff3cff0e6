"""LangGraph's checkpoints in a store: its own conformance suite, and what that does not ask."""

import asyncio
import operator
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.base import Checkpoint, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

import cenote
from cenote import blocking
from cenote.errors import ConsistencyError, RejectedError, SetupError
from cenote.integrations.langgraph import CenoteSaver
from cenote.testing import TestServers, evict_now

CASES = {
    "put": 17, "put_writes": 10, "get_tuple": 10, "list": 16, "delete_thread": 5,
    "delete_for_runs": 7, "copy_thread": 8, "prune": 8,
}  # fmt: skip


@pytest.fixture
async def store(cenote_servers: TestServers) -> AsyncIterator[cenote.Store]:
    async with cenote.open(**cenote_servers.fresh()) as opened:
        yield opened


def config(thread: str, ns: str = "", checkpoint_id: str | None = None) -> Any:
    named = {"thread_id": thread, "checkpoint_ns": ns}
    return {"configurable": named | ({"checkpoint_id": checkpoint_id} if checkpoint_id else {})}


def checkpoint(values: dict[str, Any], versions: dict[str, int]) -> Checkpoint:
    made: Any = {"id": str(uuid6()), "channel_values": values, "channel_versions": versions}
    return empty_checkpoint() | made


async def put(saver: CenoteSaver, at: Any, values: dict[str, Any], new: dict[str, int], **metadata: Any) -> Any:
    """Put a checkpoint whose versions are all 1 but for those that are new."""
    versions = dict.fromkeys(values, 1) | new
    told: Any = {"step": 0, **metadata}
    return await saver.aput(at, checkpoint(values, versions), told, new)


async def test_the_conformance_suite_passes_twice_on_one_store(store: cenote.Store) -> None:
    savers = 0

    @checkpointer_test(name="cenote")
    async def made() -> AsyncIterator[CenoteSaver]:
        nonlocal savers
        savers += 1
        yield CenoteSaver(store)

    for _ in range(2):
        report = await validate(made)
        results = {name: (one.tests_passed, one.tests_failed) for name, one in report.results.items() if one.detected}
        assert results == {name: (count, 0) for name, count in CASES.items()}, report.results
    assert savers == 2 * len(CASES)


# --- graphs ---------------------------------------------------------------------------------------------------------


class State(TypedDict):
    seen: Annotated[list[str], operator.add]


def counting(calls: list[str]) -> Any:
    def node(name: str) -> Any:
        def work(state: State) -> State:
            calls.append(name)
            return {"seen": [name]}

        return work

    def ask(state: State) -> State:
        return {"seen": [interrupt("go on?")]}

    graph = StateGraph(State)
    for name in ("left", "right"):
        graph.add_node(name, node(name))
        graph.add_edge(START, name)
        graph.add_edge(name, "ask")
    graph.add_node("ask", ask)
    graph.add_edge("ask", END)
    return graph


async def test_a_graph_that_waits_goes_on_in_another_process(cenote_servers: TestServers) -> None:
    address, calls = cenote_servers.fresh(), list[str]()
    async with cenote.open(**address) as first:
        graph = counting(calls).compile(checkpointer=CenoteSaver(first))
        await graph.ainvoke({"seen": []}, config("t"))
        assert sorted(calls) == ["left", "right"]
    async with cenote.open(**address) as second:  # nothing in memory
        graph = counting(calls).compile(checkpointer=CenoteSaver(second))
        done = await graph.ainvoke(Command(resume="yes"), config("t"))
        assert done["seen"] == ["left", "right", "yes"]
        assert sorted(calls) == ["left", "right"]  # what was done is not done again
        past = [one.values.get("seen") async for one in graph.aget_state_history(config("t"))]
        assert past[:2] == [["left", "right", "yes"], ["left", "right"]]


async def test_a_thread_that_left_kv_is_read_from_sql(store: cenote.Store) -> None:
    saver = CenoteSaver(store)
    graph = counting([]).compile(checkpointer=saver)
    await graph.ainvoke({"seen": []}, config("t"))
    before = [one async for one in saver.alist(config("t"))]
    await store.flush()
    await evict_now(store)
    after = [one async for one in CenoteSaver(store).alist(config("t"))]
    assert after == before
    assert len(after) >= 2


def test_without_a_loop_and_from_any_loop(cenote_servers: TestServers) -> None:
    with blocking.open(**cenote_servers.fresh()) as store:
        saver = CenoteSaver(store)
        graph = counting([]).compile(checkpointer=saver)
        graph.invoke({"seen": []}, config("t"))
        done = asyncio.run(graph.ainvoke(Command(resume="yes"), config("t")))
        assert done["seen"] == ["left", "right", "yes"]
        listed = list(saver.list(config("t"), limit=2))
        assert [one.checkpoint["channel_values"]["seen"] for one in listed] == [
            ["left", "right", "yes"],
            ["left", "right"],
        ]
        saver.delete_thread("t")
        assert saver.get_tuple(config("t")) is None


async def test_waiting_on_the_stores_own_loop_is_refused(store: cenote.Store) -> None:
    saver = CenoteSaver(store)
    with pytest.raises(RejectedError, match="on the event loop"):
        saver.get_tuple(config("t"))
    found = await asyncio.to_thread(saver.get_tuple, config("t"))
    assert found is None


def test_a_saver_ends_with_its_store_and_does_not_survive_a_fork(cenote_servers: TestServers) -> None:
    forked = """
import os, signal, sys
from cenote import blocking
from cenote.errors import SetupError
from cenote.integrations.langgraph import CenoteSaver

with blocking.open(**eval(sys.argv[1])) as store:
    saver, config = CenoteSaver(store), {"configurable": {"thread_id": "t"}}
    assert saver.get_tuple(config) is None
    child = os.fork()
    if not child:
        signal.alarm(20)  # it would wait for ever
        try:
            saver.get_tuple(config)
        except SetupError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
try:
    saver.get_tuple(config)
except SetupError:
    sys.exit(8)
"""
    address = {name: str(value) for name, value in cenote_servers.fresh().items()}
    assert subprocess.run([sys.executable, "-c", forked, repr(address)], check=False).returncode == 8


@pytest.mark.parametrize(("name", "version"), [("a\ud800", 1), ("a", 2**70)])
async def test_what_cannot_be_packed_is_refused_before_it_is_kept(store: cenote.Store, name: str, version: int) -> None:
    saver = CenoteSaver(store)
    with pytest.raises(RejectedError, match="cannot be kept"):
        await saver.aput(config("t"), checkpoint({name: 1}, {name: version}), {}, {name: version})
    assert await saver.aget_tuple(config("t")) is None


def test_an_async_store_needs_its_loop(cenote_servers: TestServers) -> None:
    async def opened() -> cenote.Store:
        return await cenote.open(**cenote_servers.fresh())

    with asyncio.Runner() as runner:
        store = runner.run(opened())
        with pytest.raises(SetupError, match="event loop"):
            CenoteSaver(store)
        runner.run(store.aclose())


# --- what must not be lost ------------------------------------------------------------------------------------------


async def test_the_newer_checkpoint_of_two_processes_is_the_head(cenote_servers: TestServers) -> None:
    address = cenote_servers.fresh()
    async with cenote.open(**address) as one, cenote.open(**address) as other:
        savers = [CenoteSaver(one), CenoteSaver(other)]
        drafts = [checkpoint({"n": number}, {"n": 1}) for number in range(40)]  # ids in this order
        jobs = [
            savers[number % 2].aput(config("t"), draft, {"step": number}, {"n": 1})
            for number, draft in reversed(list(enumerate(drafts)))
        ]
        await asyncio.gather(*jobs)
        for saver in savers:
            head = await saver.aget_tuple(config("t"))
            assert head is not None
            assert head.checkpoint["channel_values"] == {"n": 39}
            assert len([one async for one in saver.alist(config("t"))]) == 40


async def test_writes_that_come_before_their_checkpoint_are_kept(store: cenote.Store) -> None:
    saver, draft = CenoteSaver(store), checkpoint({}, {})
    named = config("t", checkpoint_id=draft["id"])
    await saver.aput_writes(named, [("ch", 1)], "task", "path")
    assert await saver.aget_tuple(named) is None
    await asyncio.gather(
        saver.aput(config("t"), draft, {}, {}),
        *(saver.aput_writes(named, [("ch", number)], f"task{number}") for number in range(20)),
    )
    found = await saver.aget_tuple(config("t"))
    assert found is not None
    assert found.pending_writes is not None
    assert {(task, value) for task, _, value in found.pending_writes} == {("task", 1)} | {
        (f"task{number}", number) for number in range(20)
    }


async def test_two_processes_write_on_top_of_one_checkpoint(cenote_servers: TestServers) -> None:
    address = cenote_servers.fresh()
    async with cenote.open(**address) as one, cenote.open(**address) as other:
        savers = [CenoteSaver(one), CenoteSaver(other)]
        named = await put(savers[0], config("t"), {}, {})
        await asyncio.gather(
            *(savers[number % 2].aput_writes(named, [("ch", number)], f"{number:02}") for number in range(40))
        )
        for saver in savers:
            found = await saver.aget_tuple(named)
            assert found is not None
            assert found.pending_writes == [(f"{number:02}", "ch", number) for number in range(40)]


async def test_which_of_two_equal_writes_stays(store: cenote.Store) -> None:
    saver = CenoteSaver(store)
    named = await put(saver, config("t"), {}, {})
    for turn in ("first", "last"):
        await saver.aput_writes(named, [("ch", turn), (ERROR, turn), (INTERRUPT, turn)], "b", "~2")
    await saver.aput_writes(named, [("ch", "early")], "z", "~1")
    found = await saver.aget_tuple(named)
    assert found is not None
    assert found.pending_writes == [  # by path, task and index
        ("z", "ch", "early"), ("b", INTERRUPT, "last"), ("b", ERROR, "last"), ("b", "ch", "first"),
    ]  # fmt: skip


async def test_branches_keep_their_own_values(store: cenote.Store) -> None:
    """Two children of one checkpoint give one channel the same version."""
    saver = CenoteSaver(store)
    root = await put(saver, config("t"), {"a": "root" * 50, "b": "kept" * 50}, {"a": 1, "b": 1})
    children = [await put(saver, root, {"a": word * 50, "b": "kept" * 50}, {"a": 2}) for word in ("left", "right")]
    for child, word in zip(children, ("left", "right"), strict=True):
        found = await saver.aget_tuple(child)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"a": word * 50, "b": "kept" * 50}


async def test_only_what_is_new_is_written(store: cenote.Store) -> None:
    saver, big = CenoteSaver(store), "x" * 3_000
    at = await put(saver, config("t"), {"big": big, "small": 0}, {"big": 1, "small": 1})
    for number in range(2, 12):
        at = await put(saver, at, {"big": big, "small": number}, {"small": number})
    sizes = [len(record["body"]) async for key, record in store.agent("langgraph/t").items("c.")]
    assert len(sizes) == 11
    found = await saver.aget_tuple(at)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"big": big, "small": 11}
    holders = [one async for one in saver.alist(config("t"))]
    assert all(one.checkpoint["channel_values"]["big"] == big for one in holders)


async def test_what_was_given_is_the_callers_own(store: cenote.Store) -> None:
    """LangGraph changes the checkpoints that it is given."""
    saver = CenoteSaver(store)
    draft = checkpoint({"a": [1]}, {"a": 1})
    draft["versions_seen"] = {"node": {"a": 1}}
    named = await saver.aput(config("t"), draft, {"step": 1}, {"a": 1})
    for _ in range(2):
        found = await saver.aget_tuple(named)
        assert found is not None
        assert found.checkpoint == draft | {"channel_values": {"a": [1]}}
        assert found.metadata == {"step": 1}
        found.checkpoint["versions_seen"]["node"]["a"] = 2
        found.checkpoint["channel_versions"]["b"] = 3
        found.checkpoint["channel_values"]["a"].append(2)
        found.metadata["step"] = 2


async def test_a_new_version_without_a_value_is_an_empty_channel(store: cenote.Store) -> None:
    saver = CenoteSaver(store)
    root = await put(saver, config("t"), {"a": 1}, {"a": 1})
    child = await saver.aput(root, checkpoint({}, {"a": 1}), {}, {"a": 1})
    found = await saver.aget_tuple(child)
    assert found is not None
    assert found.checkpoint["channel_values"] == {}


@pytest.mark.parametrize("length", [8_000, 9_000, 700_000])
async def test_large_values_and_writes(store: cenote.Store, length: int) -> None:
    saver = CenoteSaver(store)
    value = {"text": "ü" * (length // 2), "number": length}
    named = await put(saver, config("t"), {"a": value}, {"a": 1})
    await saver.aput_writes(named, [("ch", value)], "task")
    found = await saver.aget_tuple(config("t"))
    assert found is not None
    assert found.checkpoint["channel_values"] == {"a": value}
    assert found.pending_writes == [("task", "ch", value)]
    await saver.adelete_thread("t")
    assert [key async for key in store.agent("langgraph/t").keys()] == []


async def test_a_missing_value_is_told_and_never_left_out(store: cenote.Store) -> None:
    saver = CenoteSaver(store)
    root = await put(saver, config("t"), {"a": "v" * 500}, {"a": 1})
    child = await put(saver, root, {"a": "v" * 500}, {})
    (holder,) = [key async for key in store.agent("langgraph/t").keys() if root["configurable"]["checkpoint_id"] in key]
    await store.agent("langgraph/t").delete(holder)
    with pytest.raises(ConsistencyError, match="needs values"):
        await CenoteSaver(store).aget_tuple(child)


# --- thinning out ---------------------------------------------------------------------------------------------------


async def test_what_stays_keeps_the_values_of_what_goes(store: cenote.Store) -> None:
    saver, big = CenoteSaver(store), {"text": "b" * 20_000}
    at = await put(saver, config("t"), {"big": big, "old": "o" * 300}, {"big": 1, "old": 1}, run_id="first")
    for number in range(2, 6):
        at = await put(saver, at, {"big": big, "old": "o" * 300, "n": number}, {"n": number}, run_id="second")
    await saver.adelete_for_runs(["first"])
    await saver.aprune(["t"])
    fresh = CenoteSaver(store)
    (found,) = [one async for one in fresh.alist(config("t"))]
    assert found.checkpoint["channel_values"] == {"big": big, "old": "o" * 300, "n": 5}
    await fresh.adelete_for_runs(["second"])
    assert await fresh.aget_tuple(config("t")) is None
    assert [key async for key in store.agent("langgraph/t").keys()] == []


async def test_a_run_that_is_deleted_gives_the_head_back(store: cenote.Store) -> None:
    saver = CenoteSaver(store)
    at = await put(saver, config("t"), {"n": 1}, {"n": 1}, run_id="first")
    await put(saver, at, {"n": 2}, {"n": 2}, run_id="second")
    await saver.adelete_for_runs(["second"])
    found = await saver.aget_tuple(config("t"))
    assert found is not None
    assert found.checkpoint["channel_values"] == {"n": 1}


async def test_a_delta_channel_survives_pruning(store: cenote.Store) -> None:
    """Its value is the last stored one and the writes since; a prune keeps these ancestors."""
    saver = CenoteSaver(store)
    at = await put(saver, config("t"), {"log": ["lost"]}, {"log": 1})
    at = await put(saver, at, {"log": ["stored"]}, {"log": 2})
    for number in range(3):
        await saver.aput_writes(at, [("log", number), ("other", "not asked")], f"task{number}")
        draft = checkpoint({}, {"log": 3 + number})
        counters = {"log": (number + 1, number + 1)}
        at = await saver.aput(at, draft, {"counters_since_delta_snapshot": counters}, {"log": 3 + number})
    before = await saver.aget_delta_channel_history(config=at, channels=["log", "none"])
    assert before["log"]["seed"] == ["stored"]
    assert [value for _, _, value in before["log"]["writes"]] == [0, 1, 2]
    assert before["none"] == {"writes": []}
    await saver.aprune(["t"])
    assert len([one async for one in saver.alist(config("t"))]) == 4
    assert await CenoteSaver(store).aget_delta_channel_history(config=config("t"), channels=["log", "none"]) == before


# --- names ----------------------------------------------------------------------------------------------------------


async def test_hostile_names_are_names(store: cenote.Store) -> None:
    saver = CenoteSaver(store)
    names = ["", "a.b", "a*", ">", "é" * 300, "a/b", "\x00", "=", "!", " ", "x" * 5_000, "c.n.", "node:1|sub:2"]
    for name in names:
        draft = checkpoint({"name": name}, {"name": 1})
        told: Any = {"mark\x00": name}
        await saver.aput(config(name or "empty", ns=name), draft, told, {"name": 1})
    for name in names:
        found = await saver.aget_tuple(config(name or "empty", ns=name))
        assert found is not None
        assert found.checkpoint["channel_values"] == {"name": name}
    assert len([one async for one in saver.alist(None)]) == len(names)


async def test_prefixes_keep_tenants_apart(store: cenote.Store) -> None:
    savers = [CenoteSaver(store, prefix=name) for name in ("a", "b")]
    for number, saver in enumerate(savers):
        await put(saver, config("t"), {"n": number}, {"n": 1}, run_id="r")
    await savers[0].adelete_for_runs(["r"])
    assert [one async for one in savers[0].alist(None)] == []
    (left,) = [one async for one in savers[1].alist(None)]
    assert left.checkpoint["channel_values"] == {"n": 1}
    for wrong in ("", "a/b", "a.b", "a" * 33, "ä"):
        with pytest.raises(RejectedError, match="prefix"):
            CenoteSaver(store, prefix=wrong)


async def test_metadata_that_json_cannot_carry_comes_back(store: cenote.Store, tmp_path: Path) -> None:
    saver = CenoteSaver(store)
    strange: Any = {"pair": (1, 2), "path": tmp_path, "not": float("inf"), "step": 3, "run_id": "r"}
    named = await saver.aput(config("t"), checkpoint({}, {}), strange, {})
    found = await saver.aget_tuple(named)
    assert found is not None
    assert found.metadata["step"] == 3
    assert [one.config async for one in saver.alist(config("t"), filter={"step": 3, "not": float("inf")})] == [named]
    assert [one async for one in saver.alist(config("t"), filter={"step": 4})] == []


class Mirror:
    """A cipher for a test: nothing is left to read."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "mirror", bytes(byte ^ 0x5A for byte in reversed(plaintext))

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        assert ciphername == "mirror"
        return self.encrypt(ciphertext)[1]


async def test_an_encrypting_serializer_leaves_nothing_to_read(store: cenote.Store) -> None:
    secret = "the-treasure-is-here"
    saver = CenoteSaver(store, serde=EncryptedSerializer(Mirror()))
    named = await put(saver, config("t"), {"a": secret}, {"a": 1})
    await saver.aput_writes(named, [("ch", secret)], "task")
    found = await saver.with_allowlist([("x", "y")]).aget_tuple(named)  # a shallow copy
    assert found is not None
    assert found.checkpoint["channel_values"] == {"a": secret}
    assert found.pending_writes == [("task", "ch", secret)]
    kept = [str(value) async for _, value in store.agent("langgraph/t").items()]
    assert kept
    assert not any(secret in value for value in kept)
