"""Boards of several flushers, added (I8)."""

from dataclasses import replace

from cenote.engine.lease import Board
from cenote.engine.slots import added

NOW = 1_000_000
ONE = Board(
    holder="one", renewed_ms=NOW, committed_ms=50, clean_ms=40, flushed=10, commits=2, avg_flush_ms=3.0,
    lag_ms_p95=8.0, violations=1, evicted=7,
)  # fmt: skip
TWO = Board(
    holder="two", renewed_ms=NOW, committed_ms=60, clean_ms=90, flushed=30, commits=6, avg_flush_ms=5.0,
    lag_ms_p95=9.0, lag_ms_p50=2.0, violations=2, sql_down_since_ms=5, sql_commits_lost=4,
)  # fmt: skip


def test_what_was_counted_is_added_and_of_lags_the_worst_is_told() -> None:
    total = added(ONE, [TWO], NOW)
    assert (total.flushed, total.commits, total.violations, total.evicted) == (40, 8, 3, 7)
    assert total.avg_flush_ms == 4.5
    assert (total.lag_ms_p50, total.lag_ms_p95, total.lag_ms_p99) == (2.0, 9.0, None)
    assert (total.committed_ms, total.sql_down_since_ms) == (60, 5)
    assert (total.clean_ms, total.holder, total.sql_commits_lost) == (40, "one", 0), "these are the primary's to tell"
    assert ONE.flushed == 10, "the primary's own board is left as it is"


def test_who_left_who_died_and_who_went_on_to_another_lease_count_once() -> None:
    gone, dead = replace(TWO, holder=""), replace(TWO, renewed_ms=NOW - 60_000)
    assert added(ONE, [gone, dead, replace(TWO, holder="one")], NOW) == ONE
    assert added(ONE, [TWO, TWO], NOW).flushed == 40


def test_of_windows_the_worst_lag_is_told_and_the_counts_are_added() -> None:
    one = replace(ONE, windows={"10s": [1.0, None, 3.0, 10, 1, 2]})
    two = replace(TWO, windows={"10s": [2.0, 2.0, 1.0, 5, 0, 1], "1m": [1.0, 1.0, 1.0, 5, 0, 1]})
    assert added(one, [two], NOW).windows == {"10s": [2.0, 2.0, 3.0, 15, 1, 3], "1m": [1.0, 1.0, 1.0, 5, 0, 1]}
