"""Full jitter under a deadline."""

import pytest

from cenote.config import RetryConfig
from cenote.errors import TransactionError
from cenote.retry import Backoff, jittered_ms

POLICY = RetryConfig(base_ms=5, wait_ms_max=100)


def test_the_wait_is_drawn_from_a_doubling_range_up_to_the_cap() -> None:
    widest = [jittered_ms(attempts, POLICY, 1.0) for attempts in (1, 2, 3, 4, 5, 6, 7, 5000)]
    assert widest == [5, 10, 20, 40, 80, 100, 100, 100]
    assert jittered_ms(3, POLICY, 0.0) == 0
    assert jittered_ms(3, POLICY, 0.25) == 5


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_no_wait_ends_after_the_deadline() -> None:
    clock = Clock()
    backoff = Backoff(POLICY, 200, clock=clock, dice=lambda: 0.99)
    waits = []
    while (wait_ms := backoff.next_wait_ms()) is not None:
        waits.append(wait_ms)
        clock.now_s += wait_ms / 1000
    assert len(waits) > 3
    assert sum(waits) < 200
    assert backoff.attempts == len(waits) + 1


async def test_a_spent_deadline_raises_the_last_error_and_says_how_hard_it_was_tried() -> None:
    clock = Clock()
    backoff = Backoff(POLICY, 50, clock=clock, dice=lambda: 0.0)
    first, last = TransactionError("first"), TransactionError("last")
    await backoff.pause(first)
    clock.now_s += 0.051
    assert backoff.left_ms == 0
    with pytest.raises(TransactionError) as raised:
        await backoff.pause(last)
    assert raised.value is last
    assert (raised.value.attempts, raised.value.elapsed_ms) == (2, pytest.approx(51))
    assert first.attempts is None
