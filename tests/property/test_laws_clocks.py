"""Clocks against a brute-force oracle: the graph of what happened before what."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from cenote.model.clock import HybridClock, Order, VectorClock


@settings(max_examples=30)
@given(st.randoms(use_true_random=False))
def test_clocks_tell_what_happened_before_what(random: Random) -> None:
    actors = ["a", "b", "c"]
    vectors = {actor: VectorClock() for actor in actors}
    hybrids = {actor: HybridClock(0, 0, actor) for actor in actors}
    walls = {actor: random.randrange(50) for actor in actors}  # skewed, and they may go back
    seen: dict[str, frozenset[int]] = dict.fromkeys(actors, frozenset())
    events: list[tuple[frozenset[int], VectorClock, HybridClock]] = []
    for n in range(25):
        actor = random.choice(actors)
        walls[actor] = max(0, walls[actor] + random.randrange(-2, 5))
        if events and random.random() < 0.5:
            before, vector, hybrid = random.choice(events)
            vectors[actor] = vectors[actor].merge(vector)
            hybrids[actor] = hybrids[actor].receive(hybrid, walls[actor])
            seen[actor] |= before
        else:
            hybrids[actor] = hybrids[actor].now(walls[actor])
        vectors[actor] = vectors[actor].increment(actor)
        seen[actor] |= {n}
        events.append((seen[actor], vectors[actor], hybrids[actor]))
    for i, (_, vector, hybrid) in enumerate(events):
        for j, (later, other, newer) in enumerate(events):
            forth, back = i in later, j in events[i][0]
            expected = {(1, 1): Order.EQUAL, (1, 0): Order.BEFORE, (0, 1): Order.AFTER, (0, 0): Order.CONCURRENT}
            assert vector.compare(other) is expected[forth, back]
            assert i == j or hybrid != newer
            if forth and i != j:
                assert hybrid < newer
    assert max(hybrid.wall_ms for _, _, hybrid in events) <= 50 + 25 * 5


_VECTORS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 4)).map(VectorClock)


@given(_VECTORS, _VECTORS, _VECTORS)
def test_vector_clocks_are_a_lattice(a: VectorClock, b: VectorClock, c: VectorClock) -> None:
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(a) == a == VectorClock.from_json(a.to_json())
    assert (a.compare(b) in (Order.BEFORE, Order.EQUAL)) == (a.merge(b) == b)
