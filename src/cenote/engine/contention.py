"""A race for a key between processes in which nobody starves (flow rule 16).

A compare-and-set is lost to whoever wrote since the attempt began. So who won and begins the next one at once is
always ahead of those who try when they have seen that they lost, and a pause that doubles after each loss leaves them
behind for good: with 8 processes at one key one call in 24,000 took 11 s, while another process won 2,000 times
in a row. Hence two rules, both measured by what an attempt takes here: a loser pauses for a few attempts, however
often it has lost, and who has won a contested key leaves a gap before its next attempt, in which the others begin.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import NamedTuple

from cenote.retry import Backoff, Policy

LOSER_ATTEMPTS_MAX = 8  # a loser's pause
WINNER_ATTEMPTS_MAX = 2  # a winner's gap
CONTESTED_S = 1.0  # so long after a loss a key counts as contested
_KEYS_MAX = 4096

_dice = random.Random()  # its own: a program that seeds the global one must get what it expects


class _Contest(NamedTuple):
    over_s: float  # not contested after
    next_s: float  # no attempt of this process before


class Contention:
    """The contested keys of one process."""

    def __init__(
        self, policy: Policy, *, clock: Callable[[], float] = time.monotonic, dice: Callable[[], float] = _dice.random
    ) -> None:
        self.policy = policy
        self.clock = clock
        self.dice = dice
        self._contests: dict[str, _Contest] = {}

    def pace(self, subject: str) -> "Pace":
        """For one call at this key."""
        return Pace(self, subject)

    def aside_ms(self, subject: str) -> float:
        """How long this process lets the others try first."""
        contest = self._contests.get(subject)
        return 0.0 if contest is None else max(0.0, (contest.next_s - self.clock()) * 1000)

    def won(self, subject: str, attempt_ms: float, *, lost: bool) -> None:
        """This process has written; `lost`: after it had lost."""
        now_s, contest = self.clock(), self._contests.pop(subject, None)
        over_s = now_s + CONTESTED_S if lost else 0.0 if contest is None else contest.over_s
        if over_s > now_s:
            gap_s = self.dice() * WINNER_ATTEMPTS_MAX * attempt_ms / 1000
            self._contests[subject] = _Contest(over_s, now_s + gap_s)
            if len(self._contests) > _KEYS_MAX:
                del self._contests[next(iter(self._contests))]


class Pace:
    """The pauses of one call; a `Policy` for those after a loss.

    The quickest attempt counts: the others may have waited for something else.
    """

    __slots__ = ("_began", "_contention", "_lost", "_quickest_ms", "_subject")

    def __init__(self, contention: Contention, subject: str) -> None:
        self._contention = contention
        self._subject = subject
        self._began = 0.0
        self._quickest_ms: float | None = None
        self._lost = False

    async def stand_aside(self, backoff: Backoff) -> None:
        """Before the first attempt."""
        aside_ms = min(self._contention.aside_ms(self._subject), backoff.left_ms)
        if aside_ms:
            await asyncio.sleep(aside_ms / 1000)

    def begin(self) -> None:
        """An attempt begins."""
        self._began = self._contention.clock()

    def lost(self) -> None:
        """It has ended, and another one was faster."""
        self._lost = True
        self._took()

    def won(self) -> None:
        """It has ended, and stands."""
        self._contention.won(self._subject, self._took(), lost=self._lost)

    def _took(self) -> float:
        took_ms = (self._contention.clock() - self._began) * 1000
        self._quickest_ms = took_ms if self._quickest_ms is None else min(took_ms, self._quickest_ms)
        return self._quickest_ms

    @property
    def base_ms(self) -> float:
        """The first wait is at most this: the time of two attempts."""
        return self._contention.policy.base_ms if self._quickest_ms is None else 2 * self._quickest_ms

    @property
    def wait_ms_max(self) -> float:
        """No wait is longer."""
        policy = self._contention.policy.wait_ms_max
        return policy if self._quickest_ms is None else min(policy, LOSER_ATTEMPTS_MAX * self._quickest_ms)
