"""Connections kept at hand between two calls.

Giving a connection back to asyncpg's pool and taking it again costs a task, a timer and a turn of the event loop, which
is more than many a statement costs its client. One that was left clean stays out of the pool for a moment instead, and
the next call has it at once. To the pool it is in use: whoever closes, expires or counts must ask here, too.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

PARKED_S: Final = 1.0
"""What nobody needed for so long goes back to the pool, whose idle timeout counts from then on."""


class Parked:
    """Last in, first out. `release` must not wait, and gives a connection back to the pool."""

    def __init__(self, release: Callable[[Any], object]) -> None:
        self._release = release
        self._cons: list[Any] = []
        self._begun = 0.0  # older ones are not kept
        self._spare = 0  # so many were at hand all the time since the timer was set
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._cons)

    def take(self, lifetime_s: float) -> Any | None:
        """One that is open, and was opened at most `lifetime_s` ago; None: ask the pool."""
        while self._cons:
            con = self._cons.pop()
            self._spare = min(self._spare, len(self._cons))
            behind = con._con  # the pool hands out a proxy, and takes the connection from it when that is lost
            if behind is None:
                continue
            if not behind.is_closed() and time.monotonic() - behind.opened_at <= lifetime_s:
                return con
            self._release(con)
        return None

    def put(self, con: Any) -> bool:
        """Keep one that was used without an error. False where it must go through the pool: it is to be reset, closed
        or replaced."""
        behind = con._con
        if behind is None or behind.opened_at < self._begun or behind.is_closed():
            return False
        if behind.strange or behind.is_in_transaction():
            return False
        self._cons.append(con)
        if self._timer is None:
            self._set()
        return True

    def clear(self) -> None:
        """Give all back, now or when they come: only those that are opened from now on are kept."""
        self._begun = time.monotonic()
        cons, self._cons = self._cons, []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for con in cons:
            self._release(con)

    def _set(self) -> None:
        self._spare = len(self._cons)
        self._timer = asyncio.get_running_loop().call_later(PARKED_S, self._thin)

    def _thin(self) -> None:
        self._timer = None
        spare, self._cons = self._cons[: self._spare], self._cons[self._spare :]
        if self._cons:
            self._set()
        for con in spare:
            self._release(con)
