"""Trying again: full jitter under a deadline.

The wait before attempt n is drawn evenly from 0 … min(cap, base · 2ⁿ): waiters that failed together do not
come back together. A wait that would end after the deadline is not begun: the last error is raised instead,
with `.attempts` and `.elapsed_ms`. The arithmetic is pure; `Backoff` adds the clock, the dice and the
sleep.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Protocol

from cenote.errors import CenoteError

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
        """Wait before the next attempt, or raise `error` because there is no time for one."""
        wait_ms = self.next_wait_ms(policy)
        if wait_ms is None:
            error.attempts, error.elapsed_ms = self.attempts, self.elapsed_ms
            raise error
        await asyncio.sleep(wait_ms / 1000)
