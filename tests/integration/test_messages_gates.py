"""Messages: gates without a stopwatch (plans, bytes of the write-ahead log), and the command line."""

import json
from typing import Any
from uuid import uuid4

import pytest
from cli_run import Cli

import cenote
from cenote.model.key import sql_key
from cenote.repositories.messages_entity import outgoing
from cenote.sql.messages import LAST_US, MessageTable, Select
from cenote.store import Store
from cenote.testing import TestServers

WAL_BYTES_MAX = 800


def letters(count: int) -> list[Any]:
    """Bodies of some 160 bytes."""
    text = "found water, " * 10
    return [
        {"body": {"n": n, "text": text}, "sender": f"s{n % 200}", "to": f"r{n % 200}", "conversation": f"c{n % 200}"}
        for n in range(count)
    ]


@pytest.mark.judge
async def test_a_page_reads_no_more_than_it_returns(cenote_store: Store) -> None:
    """Each list by its own index, in each partition, in generic plans, too."""
    table: MessageTable = cenote_store.messages._table
    for _ in range(5):
        await cenote_store.messages.send_many(letters(1000))
    schema = cenote_store.config.names.schema("messages")
    await table.db.execute(f"ANALYZE {schema}.log")
    by_index = {
        Select(): "_pkey",
        Select(conversation=sql_key("c7")): "_conversation_ts_idx",
        Select(recipient=sql_key("r3")): "_recipient_ts_idx",
        Select(sender=sql_key("s3")): "_sender_ts_idx",
    }
    for mode in ("force_custom_plan", "force_generic_plan"):
        for which, index in by_index.items():
            for query, start in ((which.query, 1), (which.query + "_back", LAST_US)):
                async with table.db.connection() as con, con.transaction():
                    await con.execute(f"SET LOCAL plan_cache_mode = {mode}")
                    explain = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {table.db.queries[query]}"
                    plan = json.loads((await con.fetch(explain, start, 10, 2**23, *which))[0][0])
                scans = [one for one in nodes(plan[0]["Plan"]) if "log_2" in one.get("Relation Name", "")]
                assert scans, (query, plan)
                for scan in scans:
                    assert scan["Node Type"] == "Index Scan", (mode, query, scan)
                    assert scan["Index Name"].endswith(index), (mode, query, scan)
                    assert scan["Actual Rows"] <= 10, (mode, query, scan)


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(one for below in plan.get("Plans", []) for one in nodes(below))]


async def test_wal_per_message(cenote_store: Store) -> None:
    table: MessageTable = cenote_store.messages._table
    await cenote_store.messages.send_many(letters(1000))
    rows = [[outgoing(one) for one in letters(500)] for _ in range(10)]
    begin = await table.db.fetchval("SELECT pg_current_wal_insert_lsn()::text")
    for batch in rows:
        assert len(await table.send(batch, check=False, timeout_ms=5000)) == 500
    written = await table.db.fetchval("SELECT (pg_current_wal_insert_lsn() - $1::text::pg_lsn)::bigint", begin)
    assert 300 < written / 5000 <= WAL_BYTES_MAX, f"{written / 5000:.0f} bytes a message"


# --- the command line ---------------------------------------------------------------------------------------


@pytest.fixture
def cli(cenote_servers: TestServers, capsys: pytest.CaptureFixture[str]) -> Cli:
    fresh = cenote_servers.fresh()
    return Cli(capsys, ["--data-dir", str(fresh["data_dir"]), "--namespace", fresh["namespace"]])


def test_messages_at_the_command_line(cli: Cli) -> None:
    known = str(uuid4())
    nothing = cli("messages", "list")
    assert (nothing.code, nothing.out) == (1, "no messages\n")
    for _ in range(2):
        sent = cli("messages", "send", '{"say": "hello cave"}', "--from", "a", "--to", "b", "--id", known)
        assert (sent.code, sent.out.strip()) == (0, known)
    answer = cli("messages", "send", "7", "--text", "--from", "b", "--to", "a", "--reply-to", known, "--json").json
    assert (answer["body"], answer["reply_to"], answer["to"]) == ("7", known, "a")
    assert "hello cave" in cli("messages", "list", "--to", "b").out
    page = cli("messages", "list", "--limit", "1", "--newest", "--json").json
    assert [one["body"] for one in page["messages"]] == ["7"]
    assert page["next"]
    found = cli("messages", "search", "CAVE", "--json").json["messages"]
    assert [one["id"] for one in found] == [known]
    tail = cli("messages", "tail", "--since", found[0]["position"], "--count", "1", "--json")
    assert (tail.code, tail.json["id"]) == (0, answer["id"])
    other = cli("messages", "send", "another", "--from", "a", "--to", "b", "--id", known)
    assert other.code == 2
    assert "another message has it" in other.err


@pytest.mark.judge
def test_messages_without_await(cenote_servers: TestServers) -> None:
    with cenote.blocking.open(**cenote_servers.fresh()) as store:
        messages = store.messages
        first = messages.send("one", sender="a", to="b", conversation="c")
        messages.send_many([{"body": "two", "sender": "a", "to": "b"}])
        with messages.subscribe(to="b", since=0) as feed:
            assert [next(feed).body, next(feed).body] == ["one", "two"]
        assert messages.get(first.id) == first
        assert [one.body for one in messages.search("two")] == ["two"]
        messages.delete(first.id)
        assert messages.forget("c") == 0
        assert [one.body for one in messages.read()] == ["two"]
