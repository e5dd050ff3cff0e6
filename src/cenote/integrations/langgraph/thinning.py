"""Deleting, thinning out and copying threads. What others need of a checkpoint that goes is written into theirs before,
so a process may die at any line; only a run that begins meanwhile could still refer to it, and says so when it reads.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from cenote.agent import AgentState
from cenote.integrations.langgraph import records
from cenote.integrations.langgraph.records import Record
from cenote.integrations.langgraph.shelf import Shelf

_PAGE: Final = 64


async def delete_thread(shelf: Shelf, thread: str) -> None:
    """Everything of a thread."""
    agent, own = shelf.agent(thread), records.token(thread)
    runs = records.run_ids([record async for record in shelf.all(agent, None)])
    await shelf.delete(agent, [key async for key in agent.keys("")])
    await shelf.delete(shelf.index, [f"t.{own}", *(f"r.{records.token(run)}.{own}" for run in runs)])


async def delete_runs(shelf: Shelf, runs: Sequence[str]) -> None:
    """The checkpoints that these runs made, in whatever thread."""
    gone = set(runs)
    for run in runs:
        prefix = f"r.{records.token(run)}."
        for thread in await shelf.threads(prefix):
            await _thin(shelf, thread, lambda record: record["metadata"].get("run_id") not in gone)
            await shelf.delete(shelf.index, [prefix + records.token(thread)])


async def keep_latest(shelf: Shelf, thread: str) -> None:
    """The newest of each namespace, and those of its ancestors without which a delta channel could not be told."""
    agent = shelf.agent(thread)
    newest: dict[str, str] = {}
    async for record in shelf.all(agent, None):
        newest[record["ns"]] = max(record["id"], newest.get(record["ns"], ""))
    kept = {(ns, one) for ns, last in newest.items() for one in await _chain(shelf, agent, ns, last)}
    # What somebody put meanwhile is newer than what was the newest.
    await _thin(shelf, thread, lambda one: (one["ns"], one["id"]) in kept or one["id"] > newest.get(one["ns"], ""))


async def copy(shelf: Shelf, source: str, target: str) -> None:
    """All of a thread into another: values first, then what refers to them, then the heads."""
    here, there = shelf.agent(source), shelf.agent(target)
    for prefix in ("b.", "c."):
        page: dict[str, Any] = {}
        async for key, value in here.items(prefix):
            page[key] = value
            if len(page) == _PAGE:
                await _copy_page(shelf, there, target, page)
                page = {}
        await _copy_page(shelf, there, target, page)
    async for record in shelf.all(there, None):
        await shelf.move_head(there, record["ns"], record["id"])


async def _copy_page(shelf: Shelf, there: AgentState, target: str, page: dict[str, Any]) -> None:
    if page:
        await shelf.enlist(target, records.run_ids(filter(records.complete, page.values())))
        await there.put_many(page)


async def _chain(shelf: Shelf, agent: AgentState, ns: str, newest: str) -> list[str]:
    """The newest, and its ancestors up to where each of its delta channels has been stored as a whole."""
    record, chain = await shelf.record(agent, ns, newest), [newest]
    wanted = set(record["metadata"].get(records.DELTA_COUNTERS, ())) if record else set()
    while record is not None and record["parent"] and (wanted := wanted - records.opened(record["body"]).names()):
        record = await shelf.record(agent, ns, record["parent"])
        chain += [record["id"]] if record else []
    return chain


async def _thin(shelf: Shelf, thread: str, keep: Callable[[Record], bool]) -> None:
    agent = shelf.agent(thread)
    every = [record async for record in shelf.all(agent, None)]
    gone = {(record["ns"], record["id"]): record for record in every if not keep(record)}
    if not gone:
        return
    for record in every:
        if (record["ns"], record["id"]) not in gone:
            await _make_whole(agent, record, gone)
    stay = [record async for record in shelf.all(agent, None) if (record["ns"], record["id"]) not in gone]
    needed = {key for record in stay for key in records.far_keys(record, records.opened(record["body"]))}
    far = {key for record in gone.values() for key in records.far_keys(record, records.opened(record["body"]))}
    for ns in {ns for ns, _ in gone}:
        await _lower_head(agent, ns, {one for place, one in gone if place == ns}, stay)
    await shelf.delete(agent, [records.record_key(*place) for place in gone])
    await shelf.delete(agent, sorted(far - needed))


async def _make_whole(agent: AgentState, record: Record, gone: dict[tuple[str, str], Record]) -> None:
    """Write into a record what it needs of those that go."""
    ns = record["ns"]
    lost = [holder for holder in records.opened(record["body"]).held if (ns, holder) in gone]
    if not lost:
        return

    def whole(old: Record) -> Record:
        body = records.opened(old["body"])
        for holder in lost:
            home = records.opened(gone[ns, holder]["body"]).values
            body.values |= {name: home[name] for name in body.held.pop(holder, ())}
        return old | {"body": records.sealed(body)}

    await agent.update(records.record_key(ns, record["id"]), whole)


async def _lower_head(agent: AgentState, ns: str, gone: set[str], stay: Sequence[Record]) -> None:
    left = max((record["id"] for record in stay if record["ns"] == ns), default=None)
    if left is None:
        await agent.delete(records.head_key(ns))
    else:
        await agent.update(records.head_key(ns), lambda old: left if old in gone else old, default=left)
