"""Lag: how long an acknowledged write takes to be committed in SQL (I8, flow rule 19).

Both ends are read from the KV server's clock, so that skewed client clocks cannot make it negative. Samples go into
histograms with buckets growing by at most a tenth, hence percentiles are exact to 10 %: one for each of the last
seconds, which are folded into one for each five seconds of the last five minutes. So memory is the same for one write
and for any number, and a write costs one count, however many windows are told: the bounds that Prometheus is told of
are among those.
"""

import math
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cenote.engine.tally import LAG_MS, Tally

_GROWING = [1.1**bucket for bucket in range(150)]  # up to about 25 minutes; longer lags share the last bucket
_LATE = -2  # behind the buckets: how many were late …
_COMMITS = -1  # … and in how many commits they came
_FOLD_S = 5
SPANS_S: Final = {"10s": 10, "1m": 60, "5m": 300}
"""The windows, by name."""

Histogram = list[int]


@dataclass(frozen=True, slots=True)
class Window:
    """What was committed within one span of time.

    Attributes:
        p50, p95, p99: of the lag, in ms; None when nothing was committed.
        count: writes that were committed.
        violations: of them, those that took longer than `flush.window_ms`.
        commits: in so many batches.
    """

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    count: int = 0
    violations: int = 0
    commits: int = 0


class LagWindow:
    """Percentiles of lag over the last `window_s` seconds, in milliseconds. What was late counts no longer once nothing
    has been late for half of that time: 10 s after a fault health is to be green again (I16), and the backlog of the
    fault, which was late as a whole, is committed some time after its end. `violations` counts it for good, and the
    windows of a minute and of five, which nobody judges by, forget nothing."""

    def __init__(self, window_s: float, limit_ms: float) -> None:
        self._window_s = window_s
        self._kept_s = max(window_s, SPANS_S["10s"])
        self._limit_ms = limit_ms
        self._seconds: dict[int, Histogram] = {}
        self._folded: dict[int, Histogram] = {}
        self._second = 0  # of the histogram that is being filled, and is not folded yet
        self._late_at = -math.inf
        self._bounds = sorted({*_GROWING, *LAG_MS, limit_ms})
        self._over = self._empty()  # the seconds that are over, all together
        self._sum_ms = 0.0
        self.violations = 0
        """Writes that took longer than the consistency window, since the start of this process."""

    def record(self, lags_ms: Sequence[float]) -> bool:
        """Add the lags of one committed batch; whether any of them is a violation."""
        now = int(time.monotonic())
        buckets = self._seconds.get(now)
        if buckets is None:
            buckets = self._begin(now)
        if not lags_ms:
            return False
        for lag in lags_ms:
            buckets[bisect_left(self._bounds, lag)] += 1
        buckets[_COMMITS] += 1
        self._sum_ms += sum(lags_ms)
        if max(lags_ms) <= self._limit_ms:
            return False
        late = sum(lag > self._limit_ms for lag in lags_ms)
        self.violations += late
        buckets[_LATE] += late
        self._late_at = time.monotonic()
        return True

    def percentiles(self, *shares: float) -> list[float | None]:
        """The upper bound of the bucket that holds each share (0.95 → p95); None when nothing was committed."""
        return self._percentiles(self._recent(self._window_s), *shares)

    def windows(self) -> dict[str, Window]:
        """Every span of `SPANS_S`; the longer ones are exact to five seconds."""
        now = time.monotonic()
        told = {}
        for name, span_s in SPANS_S.items():
            total = self._recent(span_s) if span_s <= self._kept_s else self._long(now - span_s)
            count = sum(total[:_LATE])
            p50, p95, p99 = self._percentiles(total, 0.50, 0.95, 0.99)
            told[name] = Window(p50, p95, p99, count, total[_LATE], total[_COMMITS])
        return told

    def total(self) -> Tally:
        """All lags since the start of this process."""
        last = self._seconds.get(self._second)
        counts = (self._over if last is None else _added(self._over, last))[:_LATE]
        return Tally.of((*LAG_MS, self._limit_ms), (*self._bounds, math.inf), counts, self._sum_ms)

    def _begin(self, now: int) -> Histogram:
        self._fold()
        buckets = self._seconds[now] = self._empty()
        self._second = now
        for second in [second for second in self._seconds if second < now - self._kept_s]:
            del self._seconds[second]
        oldest = now // _FOLD_S - SPANS_S["5m"] // _FOLD_S
        for slot in [slot for slot in self._folded if slot < oldest]:
            del self._folded[slot]
        return buckets

    def _fold(self) -> None:
        full = self._seconds.get(self._second)
        if full is not None:
            slot = self._second // _FOLD_S
            self._over = _added(self._over, full)
            self._folded[slot] = _added(self._folded[slot], full) if slot in self._folded else list(full)

    def _recent(self, span_s: float) -> Histogram:
        now = time.monotonic()
        oldest = now - span_s
        if self._late_at < now - span_s / 2:
            oldest = max(oldest, self._late_at + 1)  # the seconds are whole
        return self._sum(buckets for second, buckets in self._seconds.items() if second >= oldest)

    def _long(self, since: float) -> Histogram:
        last = self._seconds.get(self._second)
        total = self._sum(buckets for slot, buckets in self._folded.items() if (slot + 1) * _FOLD_S > since)
        return total if last is None or self._second < since else _added(total, last)

    def _empty(self) -> Histogram:
        return [0] * (len(self._bounds) + 3)

    def _sum(self, histograms: Iterable[Histogram]) -> Histogram:
        columns = list(histograms)
        return [sum(column) for column in zip(*columns, strict=True)] if columns else self._empty()

    def _percentiles(self, total: Histogram, *shares: float) -> list[float | None]:
        buckets = total[:_LATE]
        count = sum(buckets)
        return [self._at(buckets, share * count) if count else None for share in shares]

    def _at(self, buckets: Histogram, wanted: float) -> float:
        seen = 0
        for bound, number in zip(self._bounds, buckets, strict=False):
            seen += number
            if seen >= wanted:
                return round(bound, 2)
        return round(1.1 * self._bounds[-1], 2)


def _added(left: Histogram, right: Histogram) -> Histogram:
    return [one + other for one, other in zip(left, right, strict=True)]
