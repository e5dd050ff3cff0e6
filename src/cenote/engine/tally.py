"""What a process counts for good, in buckets, for whoever asks now and then and works out rates by himself.

A tally has a fixed number of buckets, whatever is counted; one more value is one search among some twenty bounds.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final

LAG_MS: Final = (5, 10, 25, 50, 75, 100, 150, 200, 250, 300, 400, 500, 750, 1_000, 2_500, 5_000, 15_000, 60_000)
"""Bounds around the consistency window, dense where it is kept or missed; the window itself is always one of them."""
FLUSH_MS: Final = (1, 2.5, 5, 10, 25, 50, 100, 200, 500, 1_000, 2_500, 10_000)
BATCH_ROWS: Final = (1, 2, 5, 10, 25, 50, 100, 200, 500)


class Tally:
    """How many values were at most as large as each bound. All values, their number and their sum only ever grow."""

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: Iterable[float]) -> None:
        self.bounds = tuple(sorted(set(bounds)))
        self._counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    @classmethod
    def of(cls, bounds: Iterable[float], finer: Iterable[float], counts: Iterable[int], total: float) -> "Tally":
        """What was counted in finer buckets, of which each of `bounds` is a bound."""
        made = cls(bounds)
        for bound, number in zip(finer, counts, strict=True):
            made._counts[bisect_left(made.bounds, bound)] += number
        made.sum = total
        return made

    def add(self, *values: float) -> None:
        """Count these."""
        for value in values:
            self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += sum(values)

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self._counts)

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Each bound, infinity last, with the number of values that were not larger."""
        seen = 0
        for bound, number in zip((*self.bounds, float("inf")), self._counts, strict=True):
            seen += number
            yield bound, seen
