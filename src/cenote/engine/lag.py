"""Lag: how long an acknowledged write takes to be committed in SQL (I8, flow rule 19).

Both ends are read from the KV server's clock, so that skewed client clocks cannot make it negative. Samples go into
a ring of one-second histograms with buckets growing by a tenth, hence percentiles are exact to 10 %.
"""

import math
import time
from collections.abc import Iterable

_GROWTH = math.log(1.1)
_BUCKETS = 150  # 1.1 ** 150 ms is about 27 minutes; longer lags share the last bucket


class LagWindow:
    """Percentiles of lag over the last `window_s` seconds, in milliseconds. What was late counts no longer once nothing
    has been late for half of that time: 10 s after a fault health is to be green again (I16), and the backlog of the
    fault, which was late as a whole, is committed some time after its end. `violations` counts it for good."""

    def __init__(self, window_s: float, limit_ms: float) -> None:
        self._window_s = window_s
        self._limit_ms = limit_ms
        self._seconds: dict[int, list[int]] = {}
        self._late_at = -math.inf
        self.violations = 0
        """Writes that took longer than the consistency window, since the start of this process."""

    def record(self, lags_ms: Iterable[float]) -> None:
        """Add the lags of one committed batch."""
        now = int(time.monotonic())
        buckets = self._seconds.get(now)
        if buckets is None:
            buckets = self._seconds[now] = [0] * (_BUCKETS + 1)
            for second in [second for second in self._seconds if second < now - self._window_s]:
                del self._seconds[second]
        log, before = math.log, self.violations
        for lag in lags_ms:
            if lag > self._limit_ms:
                self.violations += 1
            buckets[0 if lag <= 1 else min(_BUCKETS, int(log(lag) / _GROWTH) + 1)] += 1
        if self.violations > before:
            self._late_at = time.monotonic()

    def percentiles(self, *shares: float) -> list[float | None]:
        """The upper bound of the bucket that holds each share (0.95 → p95); None when nothing was committed."""
        now = time.monotonic()
        oldest = now - self._window_s
        if self._late_at < now - self._window_s / 2:
            oldest = max(oldest, self._late_at + 1)  # the seconds are whole
        total = [0] * (_BUCKETS + 1)
        for second, buckets in self._seconds.items():
            if second >= oldest:
                total = [left + right for left, right in zip(total, buckets, strict=True)]
        count = sum(total)
        if not count:
            return [None] * len(shares)
        return [self._at(total, share * count) for share in shares]

    @staticmethod
    def _at(total: list[int], wanted: float) -> float:
        seen = 0
        for bucket, number in enumerate(total):
            seen += number
            if seen >= wanted:
                return round(1.1**bucket, 2)
        return round(1.1**_BUCKETS, 2)
