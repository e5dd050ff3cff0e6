"""The parts of the demo that judge: a verdict that cannot find a loss would be worth nothing."""

import io
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

import cenote
from cenote.demo import shared
from cenote.demo.audience import Answer, embedder
from cenote.demo.journal import Book, Journal, Promise, digest
from cenote.demo.report import Figures, finish
from cenote.demo.rooms import TaskSeen, heard_losses, task_losses, told_losses
from cenote.demo.survey import Module, modules, steps
from cenote.demo.telling import telling
from cenote.demo.verify import differences, losses, shared_losses

SOURCE = b'''"""A caf\xc3\xa9."""
import os
from . import sibling

class Cave:
    """Deep."""
    def depth(self, unit="m"): return 40

def dive(cave: Cave, *, light=True) -> bool:
    return light  # is that enough?
'''


def test_the_steps_of_a_source_are_its_findings_in_a_fixed_order() -> None:
    found = steps(SOURCE)
    assert found == steps(SOURCE)
    assert [step.key for step in found] == [
        "source", "imports", "outline/Cave", "docs/Cave", "outline/dive", "metrics/dive", "questions/001",
        "questions/002", "report",
    ]  # fmt: skip
    by_key = dict(found)
    assert by_key["imports"] == [".", "os"]
    assert by_key["outline/Cave"]["methods"] == [{"name": "depth", "line": 7, "takes": "self, unit='m'"}]
    assert by_key["outline/dive"]["gives"] == "bool"
    assert by_key["questions/002"]["asks"] == "is that enough?"
    assert by_key["report"]["doc"] == "A café."


def test_the_standard_library_is_large_enough() -> None:
    found = modules(180)
    assert len({module.name for module in found}) == 180
    assert "asyncio" in {module.name for module in modules(1000)}


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """One write acknowledged twice, one refused, one without an answer, and a torn last line."""
    path = tmp_path / "worker-1.journal"
    writer = Journal(path)
    writer.event("taken", "json", 1)
    writer.acked(writer.intent("json", "progress", {"done": 1}), (1, 10))
    writer.acked(writer.intent("json", "progress", {"done": 2}), (1, 20))
    writer.refused(writer.intent("json", "claim", "worker-1"))
    writer.intent("json", "progress", {"done": 3})
    with path.open("ab") as file:
        file.write(b'["intent", 9, "json", "prog')
    return path


def test_a_book_knows_what_was_promised_and_what_is_in_doubt(journal: Path) -> None:
    book = Book()
    book.read(journal)
    book.read(journal)
    place = ("json", "progress")
    assert book.acked == 2
    assert book.promises == {place: Promise((1, 20), digest({"done": 2}))}
    assert list(book.doubts.values()) == [(place, digest({"done": 3}))]
    assert book.halfway(journal) == ["json"]
    assert book.in_hand(journal) == {"json"}
    Journal(journal.with_name("end")).event("late", "json", 1)
    book.read(journal.with_name("end"))
    assert book.in_hand(journal) == {"json"}, "only he who took it can be late"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (None, "no row"),
        (((1, 10), {"done": 1}), "older"),
        (((1, 20), {"done": 1}), "another value"),
        (((1, 30), {"done": 4}), "by nobody"),
        (((1, 20), {"done": 2}), ""),
        (((1, 30), {"done": 3}), ""),
    ],
    ids=["missing", "older", "other", "foreign", "kept", "in doubt"],
)
def test_the_verdict(journal: Path, row: tuple[tuple[int, int], dict[str, int]] | None, why: str) -> None:
    book = Book()
    book.read(journal)
    rows = {} if row is None else {("json", "progress"): Promise(row[0], digest(row[1]))}
    found = losses(book, rows)
    assert len(found) == bool(why)
    assert all(why in loss.why for loss in found)


@pytest.mark.parametrize(
    "figure",
    [
        "evicted",
        "hydrated",
        "coalesced",
        "shares_acked",
        "recovered",
        "nats",
        "lost",
        "tasks",
        "tasks_orphaned",
        "messages",
        "facts",
        None,
    ],
)
def test_a_run_in_which_something_did_not_happen_is_no_success(figure: str | None) -> None:
    figures = Figures(
        20, 1, True, evicted=1, hydrated=1, coalesced=1, shares_acked=1, recovered=1, tasks=1, tasks_orphaned=1,
        messages=1, facts=1,
    )  # fmt: skip
    figures.kills = {"worker": 1, "nats": 1, "postgres": 1}
    if figure == "nats":
        figures.kills["nats"] = 0
    elif figure is not None:
        setattr(figures, figure, int(figure == "lost"))
    assert figures.judge() is (figure is None)


def test_what_is_read_must_be_what_the_rows_have() -> None:
    rows = {("json", key): Promise((1, 1), key) for key in "abc"} | {("re", "a"): Promise((1, 1), "a")}
    assert not differences({("json", key): key for key in "abc"}, rows)
    found = differences({("json", "a"): "a", ("json", "b"): "other", ("json", "d"): "d"}, rows)
    assert [loss.key for loss in found] == ["b", "c", "d"]


@pytest.fixture
def shares(tmp_path: Path) -> Book:
    """Two workers count 5 and add one name each, the same; a third was killed while it did the same."""
    for number in (1, 2, 3):
        writer = Journal(tmp_path / f"{number}.journal")
        intents = [writer.share("all", "findings", {"docs": 5}), writer.share("all", "surveyed", ["json"])]
        for intent in intents if number < 3 else ():
            writer.shared(intent)
    book = Book()
    for number in (1, 2, 3):
        book.read(tmp_path / f"{number}.journal")
    return book


@pytest.mark.parametrize(
    ("docs", "names", "wrong"),
    [
        (10, ["json"], []),
        (15, ["json"], []),  # the third one may have counted
        (9, ["json"], ["findings"]),
        (16, ["json"], ["findings"]),
        (10, [], ["surveyed"]),
        (10, ["json", "email"], ["surveyed"]),
    ],
)
def test_shared_values_hold_what_was_acknowledged_and_at_most_what_is_in_doubt(
    shares: Book, docs: int, names: list[str], wrong: list[str]
) -> None:
    assert (shares.acked, shares.shares, len(shares.shares_in_doubt)) == (4, 4, 2)
    held = {("all", "findings"): Counter(docs=docs), ("all", "surveyed"): Counter(names)}
    assert [loss.key for loss in shared_losses(shares, held)] == wrong


def test_a_shared_value_that_is_gone_is_found(shares: Book) -> None:
    assert {loss.key for loss in shared_losses(shares, {})} == {"findings", "surveyed"}


def test_what_workers_share_is_counted_by_kind_and_named_once() -> None:
    findings, surveyed = cenote.ORMap(), cenote.ORSet()
    for module, found in (("json", Counter(docs=2, report=1)), ("email", Counter(docs=1))):
        shared.counting(found, module)(findings)
        shared.adding(module)(surveyed)
        shared.adding(module)(surveyed)
    assert shared.parts(findings) == Counter(docs=3, report=1)
    assert shared.parts(surveyed) == Counter(["json", "email"])
    assert findings[shared.NEWEST].value == "email"


def test_what_is_told_of_a_module_is_always_the_same_and_nothing_twice() -> None:
    again = b"if 1:\n    def dive():\n        'Down.'\nelse:\n    def dive():\n        'Down.'\n"
    found = steps(SOURCE + again)
    told = telling("run", Module("cave", Path()), found)
    assert told == telling("run", Module("cave", Path()), found)
    assert [(one["to"], one["sender"]) for one in told.messages] == [("reviewers", "cave")] * 2 + [
        ("conductor", "cave")
    ]
    assert [one["text"] for one in told.facts] == [
        "cave.Cave: Deep.", "cave.dive: Down.", "cave.dive: Down.", "cave: A café.",
    ]  # fmt: skip
    assert len(told.parts()) == len(told.messages) + len(told.facts)
    assert not told.parts().keys() & telling("another run", Module("cave", Path()), found).parts().keys()


MESSAGE, FACT = ("message", "m"), ("fact", "f")


@pytest.fixture
def tellings(tmp_path: Path) -> Book:
    """One worker was told that a task is done, one that it is too late; a third was killed before it knew."""
    writer = Journal(tmp_path / "journal")
    writer.told(writer.tell("json", {MESSAGE: "x", FACT: "y"}))
    writer.refused(writer.tell("email", {("message", "late"): "x"}))
    writer.tell("re", {("fact", "killed"): "z"})
    book = Book()
    book.read(tmp_path / "journal")
    return book


HELD = {MESSAGE: Counter(["x"]), FACT: Counter(["y"])}


@pytest.mark.parametrize(
    ("held", "done", "wrong"),
    [
        (HELD, [], []),
        (HELD, ["json"], []),
        (HELD | {("fact", "killed"): Counter(["z"])}, ["json", "re"], []),
        (HELD, ["json", "re"], ["fact killed: is there 0 times"]),
        (HELD | {("fact", "killed"): Counter(["z"])}, ["json"], ["fact killed: is there 1 times"]),
        ({MESSAGE: Counter(["x"])}, [], ["fact f: is there 0 times"]),
        (HELD | {MESSAGE: Counter(["x", "x"])}, ["json"], ["message m: is there 2 times"]),
        (HELD | {MESSAGE: Counter(["other"])}, ["json"], ["message m: is there with another content"]),
        (HELD | {("message", "none"): Counter(["x"])}, ["json"], ["message none: was said by nobody"]),
    ],
    ids=["acked", "done", "in doubt, done", "done, not said", "said, not done", "gone", "twice", "other", "foreign"],
)
def test_a_task_is_done_with_all_it_says_or_nothing_is(
    tellings: Book, held: dict[tuple[str, str], Counter[str]], done: list[str], wrong: list[str]
) -> None:
    assert (tellings.told, list(tellings.tells_in_doubt.values())) == ({"json"}, ["re"])
    assert [f"{loss.key}: {loss.why}" for loss in told_losses(tellings, held, done)] == wrong


def test_a_task_that_is_not_done_or_not_there_is_found() -> None:
    tasks = [TaskSeen("json", "done", 2), TaskSeen("re", "running", 1), TaskSeen("email", "done", 1)]
    assert not task_losses([tasks[0]], ["json"])
    found = [(loss.agent, loss.why) for loss in task_losses([*tasks, tasks[2]], ["json", "re", "email", "ast"])]
    assert found == [("re", "is running"), ("ast", "there are 0"), ("email", "there are 2")]


@pytest.mark.parametrize(("heard", "wrong"), [("ab", 0), ("aab", 0), ("aba", 0), ("b", 1), ("ba", 1), ("", 2)])
def test_a_subscriber_hears_all_in_order_and_some_perhaps_again(heard: str, wrong: int) -> None:
    held = {("message", name): Counter(["x"]) for name in "ab"} | {FACT: Counter(["y"])}
    assert len(heard_losses(list(heard), held)) == wrong


@pytest.mark.parametrize("by", ["wordllama", None])
@pytest.mark.parametrize("answers", [[Answer(0.0328, "gzip.compress: [all] of it, " + 30 * "long ")], []])
def test_what_is_shown_fits_a_terminal_line_by_line(by: str | None, answers: list[Answer]) -> None:
    lag: dict[str, float | None] = {"p50": 45.0, "p95": 1271.9, "p99": 3991.75}
    figures = Figures(
        180, 4, True, by, tasks=180, tasks_again=20, tasks_orphaned=4, late=16, messages=691, heard=691,
        facts=1842, answers=answers, agents=180, writes_acked=14336, shares_acked=360, rows=7150, coalesced=4744,
        evicted=5829, hydrated=699, recovered=4, outage_s={"nats": 1.4, "postgres": 12.2}, lag_ms=lag,
        lag_ms_before_faults=lag,
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=80)
    finish(console, figures, as_json=False)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]  # it is a StringIO
    assert max(map(len, lines)) <= 80
    for name in ("tasks done", "begun again", "too late", "messages", "facts", "lost"):
        assert sum(line.startswith(f"{name} ") for line in lines) == 1, "\n".join(lines)
    assert not [line for line in lines if line.startswith(" " * 30) and line.strip()], "a meaning was broken"
    assert ("with cenote[embed] by meaning, too" in "\n".join(lines)) is (by is None)
    assert any("[all] of it" in line and line.rstrip().endswith("…") for line in lines) is bool(answers)
    finish(Console(file=(printed := io.StringIO())), figures, as_json=True)
    assert json.loads(printed.getvalue())["answers"] == [vars(one) for one in answers]


def test_meaning_is_asked_for_only_where_an_embedder_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert embedder() == "wordllama"
    monkeypatch.setitem(sys.modules, "wordllama", None)
    assert embedder() is None
