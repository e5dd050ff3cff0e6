"""Clocks against a brute-force oracle: the graph of what happened before what."""

from collections import Counter
from random import Random
from typing import NamedTuple

import pytest
from histories import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from cenote import limits
from cenote.errors import RejectedError
from cenote.model.clock import HybridClock, Order, VectorClock


class Event(NamedTuple):
    """One event of a message history; `past`: all that happened before it and itself, by brute force."""

    actor: str
    wall_ms: int
    past: frozenset[int]
    vector: VectorClock
    hybrid: HybridClock


def history(random: Random) -> list[Event]:
    """Local events, and messages: lost, late, more than once, out of order; walls skewed, and they may go back."""
    actors = ["a", "b", "c", "d"][: random.randint(2, 4)]
    vectors = {actor: VectorClock() for actor in actors}
    hybrids = {actor: HybridClock(0, 0, actor) for actor in actors}
    walls = {actor: random.randrange(50) for actor in actors}
    past: dict[str, frozenset[int]] = dict.fromkeys(actors, frozenset())
    events: list[Event] = []
    for n in range(25):
        actor = random.choice(actors)
        walls[actor] = max(0, walls[actor] + random.randrange(-5, 5))
        if events and random.random() < 0.5:
            message = random.choice(events)
            vectors[actor] = vectors[actor].merge(message.vector)
            hybrids[actor] = hybrids[actor].receive(message.hybrid, walls[actor])
            past[actor] |= message.past
        else:
            hybrids[actor] = hybrids[actor].now(walls[actor])
        vectors[actor] = vectors[actor].increment(actor)
        past[actor] |= {n}
        events.append(Event(actor, walls[actor], past[actor], vectors[actor], hybrids[actor]))
    return events


def _law_of_histories(random: Random) -> None:
    events = history(random)
    orders = {(1, 1): Order.EQUAL, (1, 0): Order.BEFORE, (0, 1): Order.AFTER, (0, 0): Order.CONCURRENT}
    for i, one in enumerate(events):
        counted = Counter(events[n].actor for n in one.past)
        assert one.vector.to_json() == counted, "it has counted what happened before, and nothing else"
        assert one.hybrid.wall_ms == max(events[n].wall_ms for n in one.past), "it stays with the walls it has seen"
        for j, other in enumerate(events):
            assert one.vector.compare(other.vector) is orders[i in other.past, j in one.past]
            assert (one.hybrid == other.hybrid) == (i == j), "no two events have one clock"
            if i in other.past and i != j:
                assert one.hybrid < other.hybrid
    in_order = sorted(range(len(events)), key=lambda n: events[n].hybrid)
    told: set[int] = set()
    for n in in_order:  # the order of the clocks is one in which everything could have happened
        told.add(n)
        assert events[n].past <= told


@settings(max_examples=30)
@given(st.randoms(use_true_random=False))
def test_clocks_tell_what_happened_before_what(random: Random) -> None:
    _law_of_histories(random)


@pytest.mark.judge
def test_clocks_tell_what_happened_before_what_in_many_histories() -> None:
    with examples(1_000):
        given(st.randoms(use_true_random=False))(_law_of_histories)()


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12))
def test_a_clock_far_ahead_is_refused_and_one_behind_is_followed_never(mine: int, theirs: int, wall: int) -> None:
    clock, remote = HybridClock(mine, 3, "a"), HybridClock(theirs, 5, "b")
    if theirs - wall > limits.CLOCK_DRIFT_MS_MAX:
        with pytest.raises(RejectedError):
            clock.receive(remote, wall)
        return
    found = clock.receive(remote, wall)
    assert found > clock
    assert found > remote
    assert (found.wall_ms, found.actor) == (max(mine, theirs, wall), "a")


_VECTORS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 4)).map(VectorClock)


@given(_VECTORS, _VECTORS, _VECTORS)
def test_vector_clocks_are_a_lattice(a: VectorClock, b: VectorClock, c: VectorClock) -> None:
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(a) == a == VectorClock.from_json(a.to_json())
    assert (a.compare(b) in (Order.BEFORE, Order.EQUAL)) == (a.merge(b) == b)
