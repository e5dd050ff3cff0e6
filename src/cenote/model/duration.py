"""Durations of the public face: `timedelta`, or seconds as a number, which is what `asyncio` takes."""

import math
from datetime import timedelta

from cenote.errors import RejectedError


def seconds(duration: timedelta | float | None, name: str) -> float | None:
    """A duration in seconds; None stays None.

    Raises:
        RejectedError: neither a timedelta nor a finite number of seconds, or negative.
    """
    if duration is None:
        return None
    if isinstance(duration, timedelta):
        duration = duration.total_seconds()
    if isinstance(duration, bool) or not isinstance(duration, int | float) or not math.isfinite(duration):
        raise RejectedError(f"{name}: a timedelta or a number of seconds is needed, not {duration!r}")
    if duration < 0:
        raise RejectedError(f"{name}: {duration} s is negative")
    return float(duration)
