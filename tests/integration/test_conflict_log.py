"""The conflict log: acknowledged before anything is discarded, there before and after the flush, bounded, and nobody's
agent."""

import asyncio
import json
import os
import signal
import sys
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cli_run import Cli

import cenote
from cenote import limits
from cenote.engine.collector import Collector
from cenote.engine.conflict_log import Conflict, ConflictLog
from cenote.engine.entries import Target
from cenote.engine.writer import Content, Writer
from cenote.errors import CenoteError, OutcomeUnknownError, RejectedError, UnavailableError
from cenote.kv.stream import StateStream
from cenote.model import value as values
from cenote.model.entry import Stored
from cenote.model.key import CONFLICTS
from cenote.store import Store
from cenote.testing import TestServers
from witness import another, demand, eventually, evict_all, tables, toothed

ROOT = Path(__file__).resolve().parents[2]


# --- the rules, taken out -----------------------------------------------------------------------------------


def the_ack(patch: pytest.MonkeyPatch) -> None:
    """Decide although the record could not be written."""
    plain = ConflictLog.record

    async def record(self: ConflictLog, *args: Any, **named: Any) -> None:
        with suppress(CenoteError):
            await plain(self, *args, **named)

    patch.setattr(ConflictLog, "record", record)


def the_bound(patch: pytest.MonkeyPatch) -> None:
    """Nobody counts."""

    async def trim(self: ConflictLog) -> None: ...

    patch.setattr(ConflictLog, "trim", trim)


def the_life(patch: pytest.MonkeyPatch) -> None:
    """Records live for ever."""
    plain = Writer.write

    async def write(self: Writer, target: Target, content: Content) -> Stored:
        return await plain(self, target, msgspec.structs.replace(content, expires_ms=None))

    patch.setattr(Writer, "write", write)


# --- what holds ---------------------------------------------------------------------------------------------


async def met(store: Store, key: str, *both: Any, agent: str = "scout", strategy: str = "lww") -> None:
    """Put the first value, and let each of the others meet what is there."""
    scout = store.agent(agent)
    await scout.put(key, both[0], replace=True)
    for value in both[1:]:
        await scout.merge(key, value, strategy=strategy)


def shown(found: list[Conflict]) -> list[tuple[str, Any, Any]]:
    return [(one.key, one.current, one.incoming) for one in found]


async def test_a_discarded_value_is_listed_at_once_and_in_sql_after_the_flush(cenote_servers: TestServers) -> None:
    """Before the flush from KV, then from both, then from SQL alone: the same records, each once."""
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        await met(store, "plan", {"step": 1}, {"step": (2, b"\0")}, "a\x00b")
        before = await store.conflicts()
        demand(shown(before) == [
            ("plan", {"step": (2, b"\0")}, "a\x00b"), ("plan", {"step": 1}, {"step": (2, b"\0")}),
        ], "I6: a discarded value is in the log")  # fmt: skip
        last = before[0]
        assert (last.agent, last.strategy, last.outcome, last.discarded) == ("scout", "lww", "incoming", ("current",))
        assert last.result == "a\x00b"
        assert last.operation.startswith(last.writer)
        assert None not in last.versions
        assert abs(datetime.now(UTC) - last.at) < timedelta(minutes=1)
        await store.flush(20)
        assert await store.conflicts() == before
        rows = await sql.link.fetch(f"SELECT * FROM {sql.schema}.conflicts ORDER BY at DESC, operation DESC")
        assert [(row["at"], row["operation"], row["writer"]) for row in rows] == [
            (one.at, one.operation, one.writer) for one in before
        ]
        assert [json.loads(row["current"]) for row in rows][1] == {"step": 1}
        assert json.loads(rows[1]["result"]) == json.loads(rows[1]["incoming"])
        assert [row["discarded"] for row in rows] == [["current"]] * 2
        assert {row["reason"] for row in rows} == {None}
        await evict_all(store)
        assert await store.conflicts() == before
        assert (await store.stats()).conflicts == {"lww": {"incoming": 2}}


async def test_who_asks_gets_the_newest_that_fit(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        for number in range(4):
            await met(store, f"k{number}", number, number + 10, agent="ab"[number % 2])
            if number == 1:
                await evict_all(store)  # the older two are in SQL alone
        with pytest.raises(cenote.ConflictError):
            await met(store, "k0", "first", "second", strategy="reject")
        assert [one.key for one in await store.conflicts()] == ["k3", "k2", "k1", "k0"]
        assert [one.key for one in await store.conflicts(limit=3)] == ["k3", "k2", "k1"]
        assert [one.key for one in await store.conflicts(agent="a")] == ["k2", "k0"]
        assert [one.key for one in await store.conflicts(agent="a", limit=1)] == ["k2"]
        assert [one.key for one in await store.conflicts(key="k1", strategy="lww")] == ["k1"]
        assert await store.conflicts(strategy="causal") == []
        third = (await store.conflicts(key="k2"))[0]
        assert [one.key for one in await store.conflicts(since=third.at)] == ["k3", "k2"]
        assert len(await store.conflicts(since=timedelta(hours=1))) == len(await store.conflicts(since=3600)) == 4
        assert await store.conflicts(since=0) == []
        for wrong in ({"limit": 0}, {"limit": True}, {"since": -1}, {"since": datetime(2030, 1, 1)}, {"agent": ""}):
            with pytest.raises(RejectedError):
                await store.conflicts(**wrong)  # type: ignore[arg-type]  # of several types


async def test_refused_meetings_are_kept_with_both_sides(cenote_servers: TestServers) -> None:
    def fails(*_: Any) -> Any:
        raise ValueError("no idea")

    cenote.conflict.register("fails", cenote.conflict.CustomMerge(fails))
    async with cenote.open(**cenote_servers.fresh()) as store:
        with pytest.raises(RejectedError):
            await met(store, "k", "mine", "yours", strategy="fails")
        (one,) = await store.conflicts()
        assert (one.outcome, one.current, one.incoming, one.result, one.discarded) == (
            "refused", "mine", "yours", None, (),
        )  # fmt: skip
        assert "no idea" in (one.reason or "")
        assert await store.agent("scout").get("k") == "mine"


@toothed(the_ack)
async def test_nothing_is_discarded_that_cannot_be_logged(cenote_servers: TestServers) -> None:
    """KV takes no record: the write that would discard is refused, and what is there stays."""
    async with cenote.open(**cenote_servers.fresh(kv__deadline_ms=300, kv__request_timeout_ms=300)) as store:
        await met(store, "k", "first")
        plain = StateStream.publish_nowait
        lost: list[CenoteError] = [UnavailableError("no KV"), OutcomeUnknownError("lost")]
        for failure in lost:

            async def refused(self: StateStream, wire: bytes, *rest: Any, failure: CenoteError = failure) -> Any:
                if CONFLICTS.token.encode() in wire:
                    raise failure
                return await plain(self, wire, *rest)

            told: CenoteError | None = None
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(StateStream, "publish_nowait", refused)
                try:
                    await store.agent("scout").merge("k", "second", strategy="lww")
                except CenoteError as error:
                    told = error
            demand(type(told) is UnavailableError and told.key == "k", f"I6: the writer is told: {told!r}")
        demand(await store.agent("scout").get("k") == "first", "I6: nothing is discarded that is not in the log")
        assert await store.conflicts() == []


async def test_a_record_that_does_not_fit_leaves_out_what_is_not_discarded(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both values fit, a record of both does not. A discarded one is kept, or the write is refused."""
    monkeypatch.setattr(limits, "VALUE_BYTES_MAX", 60_000)
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        await met(store, "k", "a" * 40_000, "b" * 40_000)
        (one,) = await store.conflicts()
        assert (one.current, one.incoming, one.result) == ("a" * 40_000, None, None)
        assert one.reason == "too large to be kept here: result, incoming"
        with pytest.raises(RejectedError, match="does not fit into the conflict log"):
            await met(store, "k", "c" * 59_900, "d")
        assert await store.agent("scout").get("k") == "c" * 59_900
        await store.flush(20)
        # A value as deep as may be is one level deeper in a record.
        nested: Any = 1
        for _ in range(limits.VALUE_DEPTH_MAX):
            nested = [nested]
        with pytest.raises(RejectedError, match="does not fit"):
            await met(store, "deep", nested, "d")
        assert len(await sql.link.fetch(f"SELECT * FROM {sql.schema}.conflicts")) == 1


async def test_large_records_and_strange_rows_show_what_can_be_shown(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        large = os.urandom(600_000).hex()  # a record of it is a reference to a blob
        await met(store, "large", large, "small")
        (one,) = await store.conflicts()
        demand(one.current == large, "I6: a large discarded value is in the log")
        log = store.agent(CONFLICTS.id)
        writer = store._machines.writer
        for key, value in (("nonsense", 1), ("9" * 40 + ".x", [2]), ("0" * 15 + ".w.1", {"outcome": {}, "agent": 3})):
            codec, body = values.encode(value)
            await writer.write(log._target(key), Content(codec, body))
        await store.flush(20)
        rows = await sql.link.fetch(f"SELECT * FROM {sql.schema}.conflicts ORDER BY at")
        assert len(rows) == 4
        blob = next(row for row in rows if row["operation"] == one.operation)
        assert (blob["at"], blob["writer"]) == (one.at, one.writer)
        assert "cenote conflicts" in blob["reason"]
        assert await store.conflicts() == [one]


async def test_the_log_is_nobodys_agent(cenote_servers: TestServers) -> None:
    """It can be read by its id, and by nothing else; only cenote writes it."""
    async with cenote.open(**cenote_servers.fresh()) as store:
        events: list[cenote.Entry] = []

        async def follow() -> None:
            async with aclosing(store.watch("*")) as entries:  # type: ignore[type-var]  # it is an asynchronous generator
                async for entry in entries:
                    events.append(entry)

        following = asyncio.create_task(follow())
        await asyncio.sleep(0.3)
        await met(store, "k", 1, 2)
        await store.flush(20)
        assert [row.name for row in await store._core.table.agents_page(None, 10)] == ["scout"]

        async def seen() -> bool:
            return len(events) >= 2

        await eventually(seen, "both writes are watched")
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
        assert {entry.agent for entry in events} == {"scout"}
        async with aclosing(store.changes(0)) as feed:  # type: ignore[type-var]  # it is an asynchronous generator
            first = await anext(feed)
        assert first.entry.agent == "scout"
        log = store.agent(str(CONFLICTS.id))
        (key,) = [key async for key in log.keys()]
        assert (await log.get(key))["key"] == "k"
        assert (await log.entry(key)).expires_at is not None
        for refused in (
            log.put("x", 1), log.delete(key), log.update(key, lambda _: 1), log.merge(key, 1),
            log.put(key, 1, if_version=0), log.put_many({"x": 1}, atomic=True),
        ):  # fmt: skip
            with pytest.raises(RejectedError, match="conflict log"):
                await refused
        async with aclosing(store.watch(CONFLICTS.text, since=0)) as entries:  # type: ignore[type-var]  # it is an asynchronous generator
            assert (await anext(entries)).key == key


@toothed(the_life)
async def test_records_leave_after_their_time(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(conflicts__ttl_s=1)) as store, tables(cenote_servers, store) as sql:
        await met(store, "k", 1, 2)
        assert len(await store.conflicts()) == 1

        async def left() -> bool:
            shown = await sql.link.fetchval(f"SELECT count(*) FROM {sql.schema}.conflicts")
            return not await store.conflicts() and shown == 0

        await eventually(left, "I15: a record leaves after conflicts.ttl_s")


@toothed(the_bound)
async def test_the_oldest_beyond_the_bound_leave(cenote_servers: TestServers) -> None:
    """Whoever flushes deletes them, by ordinary deletes; a process that does not flush deletes nothing."""
    given = cenote_servers.fresh(conflicts__count_max=3, state__tombstone_s=2)
    async with cenote.open(**given) as store, another(store, conflicts__count_max=1):
        await met(store, "k", *range(10))

        async def bounded() -> bool:
            return [one.incoming for one in await store.conflicts()] == [9, 8, 7]

        await eventually(bounded, "I15: the oldest beyond conflicts.count_max leave")


async def test_a_round_without_anything_to_do_asks_once(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def never(self: Collector) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Collector, "run", never)
    async with cenote.open(**cenote_servers.fresh(conflicts__count_max=3)) as store:
        await met(store, "k", *range(4))
        await store.flush(20)
        plain = store._core.db.fetch

        async def fetch(query: str, *rest: Any, **named: Any) -> Any:
            asked.append(query)
            return await plain(query, *rest, **named)

        monkeypatch.setattr(store._core.db, "fetch", fetch)
        await store._machines.conflicts.trim()
        assert asked == []
        assert len(await store.conflicts()) == 3


CHILD = """
import asyncio, json, os, signal, sys
import cenote
from cenote import points

async def die(name):
    print(name, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with cenote.open(**json.loads(sys.argv[1])) as store:
        scout = store.agent("scout")
        await scout.put("k", "first")
        async def hook(name):
            if name == "write.compared":  # the record is acknowledged, the decision is not yet sent
                await die(name)
        points.hook, points.armed = hook, True
        await scout.merge("k", "second", strategy="lww")

asyncio.run(main())
"""


async def test_killed_right_after_the_record(cenote_servers: TestServers) -> None:
    """The decision never happened, its record stays; the one who comes next discards, and logs that, too."""
    given = cenote_servers.fresh()
    plain = given | {"data_dir": str(given["data_dir"]), "flush__enabled": False}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, json.dumps(plain), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await child.communicate()
    assert (out.decode().strip(), child.returncode) == ("write.compared", -signal.SIGKILL)
    async with cenote.open(**given) as store, tables(cenote_servers, store) as sql:
        demand(shown(await store.conflicts()) == [("k", "first", "second")], "I6: the log comes before the decision")
        assert await store.agent("scout").get("k") == "first"
        await store.agent("scout").merge("k", "third", strategy="lww")
        await store.flush(20)
        assert shown(await store.conflicts()) == [("k", "first", "third"), ("k", "first", "second")]
        assert await sql.link.fetchval(f"SELECT count(*) FROM {sql.schema}.conflicts") == 2


def test_the_command_lists_and_filters(
    cenote_servers: TestServers, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = cenote_servers.fresh()
    cli = Cli(capsys, ["--data-dir", str(given["data_dir"]), "--namespace", given["namespace"]])
    assert cli("conflicts").code == 0
    assert cli("conflicts", "--json").json == []
    with cenote.blocking.open(**given) as store:
        scout = store.agent("sc\x1b[31mout")
        scout.put("k\n", (1, "x" * 300))
        scout.merge("k\n", {"n": 1}, strategy="lww")
        assert [one.key for one in store.conflicts(key="k\n")] == ["k\n"]
    told = cli("conflicts", "--agent", "sc\x1b[31mout", "--since", "1h", "--json")
    assert told.code == 0
    (one,) = told.json
    assert (one["key"], one["incoming"], one["discarded"]) == ("k\n", {"n": 1}, ["current"])
    assert one["current"] == {"$tuple": [1, "x" * 300]}
    assert (one["versions"][0] or "").startswith("1.")
    assert cli("conflicts", "--key", "other").code == 0
    assert cli("conflicts", "--strategy", "causal", "--json").json == []
    header, line = cli("conflicts").out.splitlines()
    assert header.split("\t")[1:3] == ["AGENT", "KEY"]
    assert 'sc\\x1b[31mout\tk\\n\tlww\tincoming\t[1, "xxx' in line
    assert len(line) < 200
    assert cli("conflicts", "--since", "soon").code == 64
