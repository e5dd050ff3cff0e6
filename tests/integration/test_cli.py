"""The commands that read and write state: what they print, how they end, and what they do with wrong input."""

import asyncio
import io
import threading
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from cli_run import Cli

import cenote
from cenote.store import Store
from cenote.testing import TestServers
from witness import reached


@pytest.fixture
def cli(cenote_servers: TestServers, capsys: pytest.CaptureFixture[str]) -> Cli:
    fresh = cenote_servers.fresh()
    return Cli(capsys, ["--data-dir", str(fresh["data_dir"]), "--namespace", fresh["namespace"]])


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        ('{"goal": "map", "step": 1}', '{\n  "goal": "map",\n  "step": 1\n}\n'),
        ("plain words", '"plain words"\n'),
        ("12", "12\n"),
        ("1.50", "1.5\n"),
        ("null", "null\n"),
        ("NaN", '"NaN"\n'),
        ("héllo \u2028 \x9b31m", '"héllo \\u2028 \\u009b31m"\n'),
        ("", '""\n'),
    ],
)
def test_a_value_comes_back_as_it_was_meant(cli: Cli, given: str, printed: str) -> None:
    assert cli("put", "scout", "k", given).code == 0
    assert cli("get", "scout", "k").out == printed


def test_an_error_without_a_hint_names_its_section_of_the_runbook(cli: Cli) -> None:
    answer = cli("get", "scout", "nothing")
    assert answer.code == 1
    assert answer.err.rstrip().endswith("(see: cenote explain NotFoundError)")
    assert cli("get", "scout", "nothing", "--json").json["error"]["hint"] is None


def test_a_put_by_hand_reaches_postgresql_with_nobody_else_serving(cli: Cli) -> None:
    answer = cli("put", "scout", "plan", "1", "--json").json
    assert answer["durability"] == "sql"
    assert cli("agents", "--json").json[0] | {"flushed_at": "", "id": ""} == {
        "name": "scout", "id": "", "type": "agent", "status": "unknown", "phase": None, "keys": 1, "flushed_at": "",
        "seen_at": None,
    }  # fmt: skip
    assert cli("status", "--json").json["stats"]["sql_rows"] == 1


def test_keys_are_found_by_what_they_hold(cli: Cli) -> None:
    assert cli("put", "scout", "plan", '{"goal": {"name": "cave"}}').code == 0
    (hit,) = cli("search", '{"goal.name": "cave"}', "--json").json
    assert (hit["agent"], hit["key"], hit["value"]) == ("scout", "plan", {"goal": {"name": "cave"}})
    assert "plan" in cli("search", '{"goal.name": {"exists": true}}', "--prefix", "pl").out
    assert cli("search", '{"goal.name": "hill"}').code == 1
    assert cli("search", "{").code == 64


def test_text_that_is_nearly_json_is_stored_with_a_remark(cli: Cli) -> None:
    answer = cli("put", "scout", "k", '{"goal": ')
    assert answer.code == 0
    assert "stored as text" in answer.err
    assert cli("put", "scout", "k", "7", "--text").code == 0
    assert cli("get", "scout", "k", "--json").json["value"] == "7"


def test_a_value_from_standard_input(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("[1, 2]"))
    assert cli("put", "scout", "k", "-").code == 0
    assert cli("get", "scout", "k", "--json").json["value"] == [1, 2]


def test_other_values_are_readable_and_their_json_says_that_it_is_tagged(cli: Cli, cenote_servers: TestServers) -> None:
    value = {"seen": (1, 2), "at": datetime(2030, 1, 2, tzinfo=UTC), "cost": Decimal("1.10"), "raw": b"\x00"}
    namespace = cli.options[-1]
    with cenote.blocking.open(data_dir=cenote_servers.data_dir, namespace=namespace) as store:
        store.agent("scout").put("k", value)
        store.agent("scout").put("look-alike", {"$tuple": [1]})
    printed = cli("get", "scout", "k").out
    assert "'seen': (1, 2)" in printed
    assert "Decimal('1.10')" in printed
    told = cli("get", "scout", "k", "--json").json
    assert told["tagged"]
    assert told["value"]["seen"] == {"$tuple": [1, 2]}
    told = cli("get", "scout", "look-alike", "--json").json
    assert not told["tagged"]
    assert told["value"] == {"$tuple": [1]}


def test_conditions_hold_or_fail(cli: Cli) -> None:
    version = cli("put", "scout", "k", "1", "--if-version", "0", "--json").json["version"]
    assert cli("put", "scout", "k", "2", "--if-version", "0").code == 2
    assert cli("put", "scout", "k", "2", "--if-version", version).code == 0
    refused = cli("delete", "scout", "k", "--if-version", version, "--json")
    assert refused.code == 2
    assert refused.json["error"]["code"] == "VERSION_CONFLICT"
    assert refused.err.startswith("error: ")
    assert cli("get", "scout", "k").out == "2\n"


def test_deleted_and_absent_keys_are_not_found(cli: Cli) -> None:
    cli("put", "scout", "k", "1")
    assert cli("delete", "scout", "k").code == 0
    assert cli("get", "scout", "k").code == 1
    assert cli("get", "scout", "k", "--default", "none").out == "none\n"
    assert cli("delete", "scout", "never").code == 0
    assert cli("ls", "scout").code == 1


def test_a_ttl_is_a_time_span(cli: Cli) -> None:
    cli("put", "scout", "k", "1", "--ttl", "90m")
    told = cli("get", "scout", "k", "--json").json
    lives_s = (datetime.fromisoformat(told["expires_at"]) - datetime.fromisoformat(told["written_at"])).total_seconds()
    assert lives_s == pytest.approx(5400, abs=5)


def test_listing_prints_keys_safely_for_terminals_and_pipes(cli: Cli) -> None:
    for key in ("plan", "a\x1b[31mred\n", "plaß"):
        cli("put", "scout", key, '{"n": 1}')
    assert cli("ls", "scout").out == "a\\x1b[31mred\\n\nplan\nplaß\n"
    assert cli("ls", "scout", "pla").out == "plan\nplaß\n"
    assert cli("ls", "scout", "plan", "-l").out == 'KEY\tVALUE\nplan\t{"n": 1}\n'
    assert cli("ls", "scout", "--values", "--json").json["a\x1b[31mred\n"] == {"n": 1}
    assert "\x1b" not in cli("ls", "scout", "--json").out


def test_watch_shows_what_there_is_and_what_comes(cli: Cli, cenote_servers: TestServers) -> None:
    cli("put", "scout-1", "plan", "1")
    with cenote.blocking.open(data_dir=cenote_servers.data_dir, namespace=cli.options[-1]) as store:
        later = threading.Timer(0.5, lambda: store.agent("scout-2").delete("plan"))
        later.start()
        lines = cli("watch", "scout-*", "--since", "0", "--count", "2", "--json").out.splitlines()
        later.join()
    assert '"change": "put"' in lines[0]
    assert '"agent": "scout-1"' in lines[0]
    assert '"change": "delete"' in lines[1]
    assert '"agent": "scout-2"' in lines[1]
    assert cli("watch", "scout-1", "--since", "7.7").code == 1


def test_flush_hydrate_and_dead_letters_on_a_quiet_store(cli: Cli) -> None:
    assert cli("put", "scout", "k", "1", "--set", "flush.enabled=false", "--json").json["durability"] == "kv"
    assert cli("flush").code == 0
    assert cli("status", "--json").json["stats"]["sql_rows"] == 1
    assert cli("hydrate", "scout", "--json").json == {"agent": "scout", "keys": 0, "bytes": 0}
    assert cli("dead-letters", "list").out == "no dead letters\n"
    assert cli("dead-letters", "retry", "1").code == 1
    assert cli("dead-letters", "discard", "1").code == 1


def test_a_dead_letter_is_listed_and_goes(cli: Cli, cenote_servers: TestServers) -> None:
    """A body that is no JSON cannot come from a put; it is written past cenote, as a broken writer would."""
    cli("put", "scout", "k", "1")
    asyncio.run(_write_poison(cenote_servers, cli.options[-1]))
    assert cli("flush").code == 0
    (letter,) = cli("dead-letters", "list", "--json").json
    assert letter["key"] == "k"
    assert cli("dead-letters", "list").code == 1
    assert cli("doctor").code == 1
    assert cli("dead-letters", "retry", str(letter["id"])).code == 2
    assert cli("dead-letters", "discard", str(letter["id"])).code == 0
    assert cli("dead-letters", "list").code == 0


def test_commits_that_postgresql_has_lost_are_told_with_what_to_do(cli: Cli, cenote_servers: TestServers) -> None:
    cli("put", "scout", "k", "1")
    asyncio.run(_lose_commits(cenote_servers, cli.options[-1]))
    found = cli("health", "--json")
    (check,) = [one for one in found.json["checks"] if one["name"] == "history"]
    assert (found.code, found.json["verdict"], check["verdict"]) == (1, "degraded", "degraded")
    assert "lost 1 or more commits" in check["reason"]
    assert "look for it in a backup" in check["reason"]
    assert "history: degraded (PostgreSQL went back" in cli("health").out
    status = cli("status")
    assert status.code == 1
    assert "rows, 1 commits lost" in status.out
    assert "look for it in a backup" in status.out


async def _lose_commits(servers: TestServers, namespace: str) -> None:
    """As a restored dump would: the number of commits goes back under a flusher."""
    import asyncpg

    async with cenote.open(data_dir=servers.data_dir, namespace=namespace) as store:
        await store.agent("scout").put("k", 2, durability="sql")
        await reached(lambda: _seen_commits(store, 2), "two commits on the board")
        before = store._core.current_durable
        link = await asyncpg.connect(servers.sql_dsn)
        await link.execute(f"UPDATE {store.config.names.schema('agents')}.flush_head SET number = number - 1")
        await link.close()
        await reached(lambda: _lost(store), "the loss is noticed")
        await reached(lambda: _begun_anew(store, before), "the tenure that begins for it")
        await reached(lambda: _flushes(store), "a flusher that has written all again")


async def _seen_commits(store: Store, number: int) -> bool:
    board = await store._machines.lease.read()
    return board is not None and board.sql_commits >= number


async def _lost(store: Store) -> bool:
    return (await store.stats()).sql_commits_lost > 0


async def _begun_anew(store: Store, durable: str | None) -> bool:
    return store._core.current_durable not in (None, durable)


async def _flushes(store: Store) -> bool:
    await store._core.probe_once()
    now = await store.stats()
    return now.flusher and now.dirty_entries == 0


async def _write_poison(servers: TestServers, namespace: str) -> None:
    import nats
    from cli_run import urls

    connection = await nats.connect(urls(servers)[1])
    header = {"Cenote": "1;j;somebody.1;;"}
    await connection.jetstream().publish(f"$KV.{namespace}_AGENT_STATE.scout.k", b"{broken", headers=header)
    await connection.close()


WRONG = [
    (["get", "scout"], "missing argument 'KEY'"),
    (["put", "scout", "k"], "missing argument 'VALUE'"),
    (["frobnicate"], "no such command 'frobnicate'"),
    (["get", "scout", "k", "--frob"], "no such option: --frob"),
    (["get", "scout", "k" * 513], "1 to 512 are allowed"),
    (["get", "scout", ""], "1 to 512 are allowed"),
    (["get", "s" * 201, "k"], "1 to 200 are allowed"),
    (["get", "scout", "\u20ac" * 400], "the limit is 1024"),
    (["put", "scout", "k", '{"a": 1, "a": 2}'], "'a' stands twice"),
    (["put", "scout", "k", "1e999"], "no finite number"),
    (["put", "scout", "k", "9" * 4001], "4000 digits"),
    (["put", "scout", "k", "[" * 300 + "]" * 300], "200"),
    (["put", "scout", "k", "[" * 100_000], "nested too deep"),
    (["put", "scout", "k", "1", "--ttl", "soon"], "no time span"),
    (["put", "scout", "k", "1", "--ttl", "0s"], "not between 1 ms and"),
    (["put", "scout", "k", "1", "--if-version", "latest"], "no version"),
    (["put", "scout", "k", "1", "--durability", "disk"], "'kv', 'sql'"),
    (["get", "scout", "k", "--set", "flush.speed=9"], "flush.speed: there is no such setting"),
    (["get", "scout", "k", "--set", "flush"], "section.field=value"),
    (["get", "scout", "k", "--set", "kv.replicas=many"], "kv.replicas"),
    (["get", "scout", "k", "--config", "/nonexistent.toml"], "there is no file"),
    (["get", "scout", "k", "--namespace", "a b"], "namespace"),
    (["flush", "--timeout", "-1"], "--timeout"),
    (["dead-letters"], "missing command"),
    (["dead-letters", "retry", "one"], "ID"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[" ".join(a)[:40] for a, _ in WRONG])
def test_wrong_input_is_a_usage_error_in_one_line(cli: Cli, arguments: list[str], words: str) -> None:
    alone = len(arguments) == 1 or "--namespace" in arguments
    answer = cli(*arguments, options=[] if alone else cli.options)
    assert answer.code == 64
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert words in answer.err


def test_wrong_input_leaves_no_trace(cli: Cli) -> None:
    cli("put", "scout", "k", "1")
    for arguments, _ in WRONG:
        if arguments[0] == "put":
            cli(*arguments)
    assert cli("ls", "scout", "-l", "--json").json == {"k": 1}


def test_an_error_is_json_where_json_was_asked_for(cli: Cli) -> None:
    answer = cli("put", "scout", "k", "1", "--ttl", "soon", "--json")
    assert answer.json["error"]["code"] == "USAGE"
    assert answer.json["error"]["hint"]


def test_the_configuration_says_where_it_comes_from_and_hides_secrets(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cenote.toml"
    file.write_text('[kv]\nurl = "nats://me:secret@host:4222"\n[flush]\ninterval_ms = 5\n')
    monkeypatch.setenv("CENOTE_FLUSH__WINDOW_MS", "300")
    given = ["--config", str(file), "--sql", "postgresql://me:hush@host/db", "--set", "state.ttl_s=60"]
    answer = cli("config", "--json", options=given)
    told = answer.json
    assert told["kv.url"] == {"value": "nats://me:***@host:4222", "origin": f"file {file}"}
    assert told["flush.window_ms"] == {"value": 300, "origin": "environment CENOTE_FLUSH__WINDOW_MS"}
    assert told["state.ttl_s"] == {"value": 60, "origin": "argument"}
    assert told["memory.entries_max"]["origin"] == "default"
    plain = cli("config", options=given).out
    assert "secret" not in answer.out + plain
    assert "hush" not in answer.out + plain
    assert "flush.interval_ms\t5\tfile" in plain


def test_versions_and_help(cli: Cli) -> None:
    assert cli("version", "--json", options=[]).json["cenote"]
    assert cli("--version", options=[]).out.startswith("cenote ")
    assert "dead-letters" in cli(options=[]).out
    assert "--if-version" in cli("put", "--help", options=[]).out
