"""The window over which lag is judged: honest while it lasts, over when it is over (I8, I16)."""

import pytest

from cenote.engine import lag
from cenote.engine.lag import LagWindow


class Clock:
    """Stands in for `time` in the module under test."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lag, "time", clock)
    return clock


def test_percentiles_are_exact_to_a_tenth(clock: Clock) -> None:
    window = LagWindow(10, 200)
    window.record([10.0] * 90 + [100.0] * 10)
    low, high = window.percentiles(0.5, 0.95)
    assert low == pytest.approx(10, rel=0.1)
    assert high == pytest.approx(100, rel=0.1)
    clock.now += 12
    assert window.percentiles(0.5) == [None]


def test_what_was_late_is_told_for_half_a_window_and_counted_for_good(clock: Clock) -> None:
    window = LagWindow(10, 200)
    window.record([3_000.0] * 500)
    for _ in range(4):
        clock.now += 1
        window.record([5.0])
        (high,) = window.percentiles(0.95)
        assert high is not None
        assert high > 200
    clock.now += 2
    window.record([5.0])
    (high,) = window.percentiles(0.95)
    assert high is not None
    assert high < 200
    assert window.violations == 500


def test_lateness_that_goes_on_is_told_all_the_time(clock: Clock) -> None:
    """One write in ten is late, one batch a second: no moment looks well."""
    window = LagWindow(10, 200)
    for _ in range(60):
        window.record([5.0] * 9 + [300.0])
        (high,) = window.percentiles(0.95)
        assert high is not None
        assert high > 200
        clock.now += 1


def test_the_long_windows_forget_nothing_before_their_time(clock: Clock) -> None:
    window = LagWindow(10, 200)
    window.record([3_000.0] * 50)
    clock.now += 20
    window.record([5.0] * 50)
    told = window.windows()
    assert (told["10s"].count, told["10s"].violations, told["10s"].commits) == (50, 0, 1)
    assert (told["1m"].count, told["1m"].violations, told["1m"].commits) == (100, 50, 2)
    assert told["1m"].p50 == pytest.approx(5, rel=0.1)
    assert told["1m"].p95 == pytest.approx(3_000, rel=0.1)
    clock.now += 50
    window.record([5.0])
    told = window.windows()
    assert (told["1m"].violations, told["5m"].violations, told["5m"].count) == (0, 50, 101)
    clock.now += 400
    assert window.windows()["5m"].count == 0
    assert window.violations == 50


def test_what_the_windows_hold_does_not_grow(clock: Clock) -> None:
    """One number of buckets for one write and for any number of them, at any pace and for any time."""
    window = LagWindow(10, 200)
    for _ in range(2_000):
        window.record([float(lag) for lag in range(1, 500, 7)])
        clock.now += 0.7
    assert len(window._seconds) <= 12
    assert len(window._folded) <= 62
    assert {len(one) for one in [*window._seconds.values(), *window._folded.values()]} == {171}
    assert window.windows()["5m"].commits == pytest.approx(300 / 0.7, rel=0.03)
