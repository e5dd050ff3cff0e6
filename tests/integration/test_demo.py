"""`cenote demo` as a newcomer starts it, smaller: its own processes, its own servers, its own verdict."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import cenote
from cenote.demo import careful
from cenote.demo.journal import Book, Journal
from cenote.demo.rooms import Rooms, task_losses, told_losses
from cenote.demo.survey import Module, Step
from cenote.demo.telling import space, telling
from cenote.demo.verify import Sql, losses


def _command(tmp_path: Path, *options: str, **environment: str) -> tuple[list[str], dict[str, str]]:
    """With a temporary directory of its own, so that what it leaves behind can be seen."""
    temporary = tmp_path / "t"
    temporary.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "cenote.demo", *options]
    return command, os.environ | {"TMPDIR": str(temporary)} | environment


def _demo(tmp_path: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command, env = _command(tmp_path, *options, **environment)
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.timeout(180)
@pytest.mark.alone
def test_nothing_is_lost_though_a_worker_and_both_servers_are_killed(tmp_path: Path) -> None:
    done = _demo(tmp_path, "--json", "--modules", "50", "--workers", "3")
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    figures: dict[str, Any] = json.loads(done.stdout)
    assert figures["kills"] == {"worker": 1, "nats": 1, "postgres": 1}
    assert figures["agents"] == 50
    assert figures["writes_acked"] > 2 * figures["agents"]
    assert min(figures[name] for name in ("rows", "coalesced", "evicted", "hydrated", "recovered")) > 0
    assert figures["lost"] == 0
    assert figures["tasks"] == 50
    assert figures["tasks_again"] >= figures["tasks_orphaned"] > 0
    assert figures["messages"] == figures["heard"] >= 50
    assert figures["facts"] > 50
    assert any("compress" in answer["text"] for answer in figures["answers"])
    assert 2 * figures["agents"] - figures["shares_in_doubt"] <= figures["shares_acked"]
    assert figures["shares_in_doubt"] < figures["agents"] / 5
    assert None not in figures["lag_ms"].values()
    assert not list((tmp_path / "t").iterdir()), "the demo left something behind"


@pytest.mark.judge
@pytest.mark.timeout(180)
@pytest.mark.alone
def test_again_in_the_same_directory_in_plain_lines(tmp_path: Path) -> None:
    options = ("--no-faults", "--modules", "20", "--workers", "2", "--data-dir", str(tmp_path / "data"))
    first, second = _demo(tmp_path, *options), _demo(tmp_path, *options)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stdout[-1500:] + second.stderr
    for done in (first, second):
        assert "no acknowledged write was lost" in " ".join(done.stdout.replace("│", " ").split())
        assert "/20 modules" in done.stdout
        assert str(tmp_path / "data") in done.stdout
        assert "\x1b" not in done.stdout


@pytest.mark.judge
@pytest.mark.timeout(180)
def test_workers_leave_a_demo_that_was_killed_and_the_next_one_does_their_tasks(tmp_path: Path) -> None:
    options = ("--no-faults", "--modules", "20", "--workers", "2", "--data-dir", str(tmp_path / "data"))
    command, env = _command(tmp_path, *options)
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert any("workers begin" in line for line in first.stdout)
        first.kill()
    journals = list((tmp_path / "t").glob("cenote-demo-*/worker-*.journal"))
    assert len(journals) == 2
    while not all('"left"' in journal.read_text() for journal in journals):
        time.sleep(0.1)
    second = _demo(tmp_path, *options, "--json")
    assert second.returncode == 0, second.stdout[-1500:] + second.stderr[-1500:]
    figures = json.loads(second.stdout)
    assert (figures["tasks"], figures["lost"]) == (20, 0)


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    done = _demo(tmp_path, CENOTE_EMBEDDED__NATS_BIN=str(tmp_path / "none"))
    assert done.returncode == 2
    assert "cannot start" in done.stderr
    assert "nats" in done.stderr
    assert "Traceback" not in done.stderr


def test_too_little_to_show_is_a_matter_of_usage(tmp_path: Path) -> None:
    done = _demo(tmp_path, "--modules", "3")
    assert done.returncode == 64
    assert "--modules" in done.stderr


async def test_the_verdict_finds_a_row_that_is_gone(cenote_store: cenote.Store, tmp_path: Path) -> None:
    journal, book = Journal(tmp_path / "journal"), Book()
    agent = cenote_store.agent("json.decoder")
    for number in range(10):
        await careful.put(journal, agent, f"step/{number}", {"text": "é" * number, "share": number / 4})
    await cenote_store.flush(10)
    url = cenote_store.config.sql.url
    assert url is not None
    sql = Sql(url.get_secret_value(), cenote_store.config.names.schema("agents"))
    book.read(tmp_path / "journal")
    assert book.acked == 10
    assert not losses(book, await sql.rows())

    connection = await asyncpg.connect(url.get_secret_value())
    try:
        schema = cenote_store.config.names.schema("agents")
        await connection.execute(f"DELETE FROM {schema}.state WHERE key = 'step/3'")
    finally:
        await connection.close()
    assert [loss.key for loss in losses(book, await sql.rows())] == ["step/3"]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("DELETE FROM {messages}.log WHERE recipient = 'conductor'", ["is there 0 times"]),
        ("UPDATE {knowledge}.facts SET text = 'Nobody knows.'", ["is there with another content"]),
        ("UPDATE {tasks}.queue SET status = 'failed'", ["is failed"]),
    ],
    ids=["message", "fact", "task"],
)
async def test_the_verdict_finds_what_is_wrong_with_what_was_told(
    cenote_store: cenote.Store, tmp_path: Path, damage: str, found: list[str]
) -> None:
    steps = [Step("questions/001", {"asks": "why?", "line": 1.0}), Step("report", {"doc": "é\0", "lines": 2})]
    told = telling("run", Module("cave", Path()), steps)
    store, book, journal = cenote_store, Book(), Journal(tmp_path / "journal")
    await store.tasks.add("survey", {"module": "cave"}, dedupe_key="cave")
    [task] = await store.tasks.claim("survey")

    async def settle(tx: cenote.Transaction) -> None:
        await store.tasks.complete(task, tx=tx)
        await store.knowledge.add_many(told.facts, tx=tx)
        await store.messages.send_many(told.messages, tx=tx)

    intent = journal.tell("cave", told.parts())
    await store.transact(settle)
    journal.told(intent)
    book.read(tmp_path / "journal")
    url, names = store.config.sql.url, store.config.names
    assert url is not None
    rooms = Rooms(url.get_secret_value(), names)

    async def verdict() -> list[str]:
        tasks, held = await rooms.tasks([task.id]), await rooms.told(space("run"))
        return [loss.why for loss in task_losses(tasks, ["cave"]) + told_losses(book, held, {"cave"})]

    assert not await verdict()
    schemas = {name: names.schema(name) for name in ("tasks", "messages", "knowledge")}
    connection = await asyncpg.connect(url.get_secret_value())
    try:
        await connection.execute(damage.format(**schemas))
    finally:
        await connection.close()
    assert await verdict() == found
