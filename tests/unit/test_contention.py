"""Who loses a race for a key is not kept from winning one (flow rule 16): callers and dice, without a server."""

import heapq
import random

import pytest

from cenote.config import RetryConfig
from cenote.engine import contention
from cenote.engine.contention import CONTESTED_S, LOSER_ATTEMPTS_MAX, WINNER_ATTEMPTS_MAX, Contention, Pace
from cenote.retry import Backoff

POLICY = RetryConfig(base_ms=5, wait_ms_max=5000)
DEADLINE_MS = 60_000


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def ended(pace: Pace, clock: Clock, took_s: float, *, won: bool) -> None:
    pace.begin()
    clock.now_s += took_s
    pace.won() if won else pace.lost()


def test_pauses_are_measured_by_the_quickest_attempt_and_bounded_by_the_configuration() -> None:
    clock = Clock()
    pace = Contention(POLICY, clock=clock).pace("k")
    assert (pace.base_ms, pace.wait_ms_max) == (5, 5000)  # nothing is measured yet
    for took_s in (0.020, 0.010, 0.300):
        ended(pace, clock, took_s, won=False)
    assert round(pace.base_ms, 6) == 20
    assert round(pace.wait_ms_max, 6) == 10 * LOSER_ATTEMPTS_MAX
    slow = Contention(POLICY, clock=clock).pace("k")
    ended(slow, clock, 900, won=False)
    assert slow.wait_ms_max == 5000


async def test_who_wins_a_contested_key_leaves_a_gap_and_nobody_else_does() -> None:
    clock = Clock()
    process = Contention(POLICY, clock=clock, dice=lambda: 1.0)
    ended(process.pace("k"), clock, 0.010, won=True)
    assert process.aside_ms("k") == 0  # nobody else was there

    pace = process.pace("k")
    ended(pace, clock, 0.010, won=False)
    ended(pace, clock, 0.010, won=True)
    assert process.aside_ms("k") == pytest.approx(10 * WINNER_ATTEMPTS_MAX)
    assert process.aside_ms("other") == 0
    await process.pace("k").stand_aside(Backoff(POLICY, 0, clock=clock))  # no longer than the call has left
    clock.now_s += 0.010
    assert process.aside_ms("k") == pytest.approx(10 * WINNER_ATTEMPTS_MAX - 10)  # what it did itself counts
    ended(process.pace("k"), clock, 0.010, won=True)
    assert process.aside_ms("k") > 0  # still contested
    clock.now_s += CONTESTED_S
    ended(process.pace("k"), clock, 0.010, won=True)
    assert process.aside_ms("k") == 0


def test_few_contested_keys_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contention, "_KEYS_MAX", 10)
    clock = Clock()
    process = Contention(POLICY, clock=clock, dice=lambda: 1.0)
    for number in range(15):
        pace = process.pace(f"k{number}")
        ended(pace, clock, 0.001, won=False)
        ended(pace, clock, 0.001, won=True)
    assert len(process._contests) == 10
    assert process.aside_ms("k14") > 0


class Race:
    """So many processes change one key without rest; an attempt takes 1 ms, and succeeds if no other one did in it."""

    def __init__(self, seed: int, *, callers: int, times: int, fair: bool) -> None:
        self.dice, self.clock, self.fair = random.Random(seed), Clock(), fair
        self.left = [times] * callers
        self.events: list[tuple[float, int, bool]] = []  # when, who, and whether an attempt ends there
        self.began, self.since = [0.0] * callers, [0.0] * callers
        self.written, self.longest_s = 0.0, 0.0
        self.processes = [Contention(POLICY, clock=self.clock, dice=self.dice.random) for _ in range(callers)]
        self.calls: list[tuple[Backoff, Pace]] = []
        for caller in range(callers):
            self.calls.append(self.call(caller))
            self.at(self.dice.random(), caller)

    def at(self, after_ms: float, caller: int, ends: bool = False) -> None:
        heapq.heappush(self.events, (self.clock.now_s + after_ms / 1000, caller, ends))

    def call(self, caller: int) -> tuple[Backoff, Pace]:
        self.since[caller] = self.clock()
        return Backoff(POLICY, DEADLINE_MS, clock=self.clock, dice=self.dice.random), self.processes[caller].pace("k")

    def ended(self, caller: int) -> None:
        backoff, pace = self.calls[caller]
        if self.written > self.began[caller]:
            pace.lost()
            wait_ms = backoff.next_wait_ms(pace if self.fair else None)
            assert wait_ms is not None, "a caller has given up"
            self.at(wait_ms, caller)
            return
        pace.won()
        self.written = self.clock()
        self.longest_s = max(self.longest_s, self.clock() - self.since[caller])
        self.left[caller] -= 1
        if self.left[caller]:
            self.calls[caller] = self.call(caller)
            self.at(self.processes[caller].aside_ms("k") if self.fair else 0, caller)

    def longest_wait_s(self) -> float:
        while self.events:
            self.clock.now_s, caller, ends = heapq.heappop(self.events)
            if ends:
                self.ended(caller)
            else:
                self.calls[caller][1].begin()
                self.began[caller] = self.clock()
                self.at(1 + self.dice.random() / 10, caller, True)
        return self.longest_s


def test_nobody_starves_where_eight_change_one_key_without_rest() -> None:
    """The same dice, with pauses that double after each loss, keep somebody waiting for seconds."""
    fair, unfair = (
        [Race(seed, callers=8, times=500, fair=how).longest_wait_s() for seed in range(5)] for how in (True, False)
    )
    print("longest waits:", fair, "instead of", unfair)
    assert max(fair) < 0.5
    assert min(unfair) > 3
