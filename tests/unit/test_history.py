"""The checker of histories, on histories that are good and bad by construction."""

import os
from pathlib import Path

import pytest

from history import FOREVER, Journal, Op, acked, read, violations


def w(value: object, begin: float, end: float = FOREVER) -> Op:
    return Op("write", "k", value, begin, end, "writer")


def r(value: object, begin: float, end: float, session: str = "reader") -> Op:
    return Op("read", "k", value, begin, end, session)


BAD = {
    "lost": [w("a", 0, 1), r(None, 2, 3)],
    "lost again": [w(None, 0, 1), w("a", 2, 3), r(None, 4, 5)],
    "resurrection": [w("a", 0, 1), w(None, 2, 3), r("a", 4, 5)],
    "stale": [w("a", 0, 1), w("b", 2, 3), r("a", 4, 5)],
    "phantom": [w("a", 0, 1), r("never written", 2, 3)],
    "phantom of the future": [r("a", 0, 1), w("a", 2, 3)],
    "non-monotonic": [w("a", 0, 1), w("b", 2), r("b", 3, 4), r("a", 5, 6)],
}
GOOD = {
    "in order": [w("a", 0, 1), r("a", 2, 3), w("b", 4, 5), r("b", 6, 7), w(None, 8, 9), r(None, 10, 11)],
    "concurrent writes": [w("a", 0, 3), w("b", 1, 2), r("a", 4, 5)],
    "a read beside a write": [w("a", 0, 1), w("b", 2, 5), r("a", 3, 4), r("b", 3, 4)],
    "unknown, happened": [w("a", 0, 1), w("b", 2), r("b", 3, 4)],
    "unknown, happened late": [w("a", 0, 1), w("b", 2), w("c", 3, 4), r("c", 5, 6), r("b", 7, 8)],
    "unknown delete": [w("a", 0, 1), w(None, 2), r(None, 9, 10)],
    "two readers see it at different times": [
        w("a", 0, 1), w("b", 2, 6), r("b", 3, 4, "one"), r("a", 3, 4, "two"), r("b", 5, 7, "two"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_named(name: str) -> None:
    found = violations(BAD[name])
    assert found
    assert found[0].startswith(name.split()[0])


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_passes(name: str) -> None:
    assert violations(GOOD[name]) == []
    assert acked(GOOD[name])


def test_a_memory_cache_may_lag_behind_other_processes_only() -> None:
    def stale_by(lag: float, session: str) -> list[Op]:
        return [w("a", 0, 1), w("b", 2, 3), r("a", 3 + lag, 4 + lag, session)]

    assert violations(stale_by(0.5, "other.1"), lag_s=1) == []
    assert violations(stale_by(1.5, "other.1"), lag_s=1)
    assert violations(stale_by(0.5, "writer.2"), lag_s=1), "its own process has no excuse"
    assert violations(stale_by(0.5, "judge"), lag_s=1, exact=("judge",))


def test_a_journal_survives_a_torn_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", "s")
    first = journal.begin("write", "k", "a")
    journal.end(first)
    journal.begin("write", "k", "b")
    third = journal.begin("write", "k", "c")
    journal.refused(third)
    fourth = journal.begin("read", "k")
    journal.end(fourth, "a")
    with open(tmp_path / "journal", "ab") as file:
        file.write(b'{"n": 9, "kin')
    history = read(tmp_path / "journal")
    assert [(op.kind, op.value, op.end < FOREVER) for op in history] == [
        ("write", "a", True), ("write", "b", False), ("read", "a", True),
    ]  # fmt: skip
    assert acked(history) == 1
    assert violations(history) == []
    assert os.stat(tmp_path / "journal").st_mode & 0o077 == 0
