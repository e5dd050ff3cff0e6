"""Trying again: full jitter under a deadline.

The wait before attempt n is drawn evenly from 0 … min(cap, base · 2ⁿ): waiters that failed together do not
come back together. A wait that would end after the deadline is not begun: the last error is raised instead,
with `.attempts` and `.elapsed_ms`. The arithmetic is pure; `Backoff` adds the clock, the dice and the
sleep. A server that has been away for a while is not waited for: `Circuit` says so (a circuit breaker, whose half-open
tries are one task's and no caller's).
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Protocol

from cenote.errors import CenoteError, UnavailableError

_dice = random.Random()  # its own: a program that seeds the global one must get what it expects


class Policy(Protocol):
    """What is read of the section `retry` of the configuration."""

    @property
    def base_ms(self) -> float: ...
    @property
    def wait_ms_max(self) -> float: ...


def jittered_ms(attempts: int, policy: Policy, dice: float) -> float:
    """The wait after `attempts` failed ones (at least 1), for `dice` in [0, 1)."""
    doublings = min(attempts - 1, 62)  # far above any cap; keeps the product finite
    return dice * min(policy.wait_ms_max, policy.base_ms * 2.0**doublings)


class Backoff:
    """One call's attempts. `await backoff.pause(error)` after each failed one.

    `began`: when the call did, by the same clock, where that was before its first attempt had failed.
    """

    __slots__ = ("_began", "_clock", "_deadline_ms", "_dice", "_policy", "attempts")

    def __init__(
        self,
        policy: Policy,
        deadline_ms: float,
        *,
        began: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        dice: Callable[[], float] = _dice.random,
    ) -> None:
        self.attempts = 0
        self._policy = policy
        self._deadline_ms = deadline_ms
        self._clock = clock
        self._dice = dice
        self._began = clock() if began is None else began

    @property
    def elapsed_ms(self) -> float:
        """Since the first attempt began."""
        return (self._clock() - self._began) * 1000

    @property
    def left_ms(self) -> float:
        """Until the deadline; never negative."""
        return max(0.0, self._deadline_ms - self.elapsed_ms)

    def next_wait_ms(self, policy: Policy | None = None) -> float | None:
        """Count a failed attempt; the wait before the next one, or None when that would come too late.

        `policy`: of this wait, where an attempt fails for another reason than its own is made for.
        """
        self.attempts += 1
        wait_ms = jittered_ms(self.attempts, policy or self._policy, self._dice())
        return wait_ms if wait_ms < self.left_ms else None

    async def pause(self, error: CenoteError, policy: Policy | None = None) -> None:
        """Wait before the next attempt, or raise `error`: there is no time for one, or the server is out."""
        wait_ms = self.next_wait_ms(policy)
        if wait_ms is None or (isinstance(error, UnavailableError) and error.lasting):
            error.attempts, error.elapsed_ms = self.attempts, self.elapsed_ms
            raise error
        await asyncio.sleep(wait_ms / 1000)


class Circuit:
    """Whether a server is out: all that was asked of it has failed for `after_ms`. It is closed while one call
    succeeds now and then, and open from then on until one does."""

    __slots__ = ("_after_s", "_clock", "_since")

    def __init__(self, after_ms: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._after_s = after_ms / 1000
        self._clock = clock
        self._since: float | None = None

    def failed(self) -> None:
        """A call has failed for want of the server."""
        if self._since is None:
            self._since = self._clock()

    def answered(self) -> None:
        """It has answered."""
        self._since = None

    @property
    def failing(self) -> bool:
        """Whether nothing has succeeded since the last failure."""
        return self._since is not None

    @property
    def out(self) -> bool:
        """Whether calls are refused."""
        return self._since is not None and self._clock() - self._since >= self._after_s

    @property
    def words(self) -> str:
        """For how long it has been away."""
        away_s = 0.0 if self._since is None else self._clock() - self._since
        return f"has not answered for {away_s:.0f} s"
