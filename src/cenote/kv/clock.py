"""A lower bound of the server's clock, learnt from the times in its answers."""

import time
from datetime import UTC, datetime

_KEEP_MS = 10_000  # a sample is improved upon, or forgotten, within this
_STEP_MS = 200  # a sample this far below the estimate means a step back of the clock (or a stall): believe it


def parse_time_us(text: bytes) -> int:
    """RFC 3339 in UTC with up to nine decimals, as nats-server prints it → microseconds since 1970."""
    second = text[:19]
    whole = _seconds.get(second)
    if whole is None:
        moment = datetime.fromisoformat(second.decode()).replace(tzinfo=UTC)
        whole = int(moment.timestamp()) * 1_000_000
        if len(_seconds) >= 64:
            _seconds.clear()
        _seconds[second] = whole
    fraction = text[20:-1]
    return whole + int(fraction[:6].ljust(6, b"0")) if fraction else whole


_seconds: dict[bytes, int] = {}  # messages that come together share their second


class ServerClock:
    """`now_ms() ≤` the server's clock, as long as that does not step back by more than `_STEP_MS` unnoticed.

    A time in an answer lies in the past when the answer is here, so (time − own monotonic clock at
    receipt) bounds the difference of the clocks from below; the largest of the last seconds is the best.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all: another server may have another clock."""
        self._offset_ms: float | None = None
        self._learnt_ms = 0.0

    def learn(self, server_ms: float) -> None:
        now_ms = time.monotonic() * 1000
        sample = server_ms - now_ms
        known = self._offset_ms
        stale = now_ms - self._learnt_ms > _KEEP_MS
        if known is None or stale or sample >= known or sample < known - _STEP_MS:
            self._offset_ms = sample
            self._learnt_ms = now_ms

    def now_ms(self) -> int | None:
        """None until a time was learnt since the last (re)connect."""
        if self._offset_ms is None:
            return None
        return int(time.monotonic() * 1000 + self._offset_ms)
