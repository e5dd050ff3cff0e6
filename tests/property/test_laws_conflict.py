"""Laws of every resolver that stands in the table, and of the one total order that replaces two tie rules (S17)."""

from itertools import permutations
from typing import Any

import pytest
from histories import states
from hypothesis import given, settings
from hypothesis import strategies as st
from values import VALUES

from cenote.conflict import RESOLVERS, Side, resolve
from cenote.errors import ConflictError, UnresolvedError
from cenote.model.canonical import canonical
from cenote.model.clock import HybridClock, VectorClock
from cenote.model.entry import Version
from cenote.model.merging import ORMap, ORSet
from cenote.testing import check_resolver_laws

_VERSIONS = st.builds(Version, st.just(1), st.integers(1, 3))
_HYBRID = st.builds(HybridClock, st.integers(0, 2), st.integers(0, 1), st.sampled_from("ab"))
_CAUSAL = st.dictionaries(st.sampled_from("ab"), st.integers(0, 2)).map(VectorClock)


def _three(clocks: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Side]]:
    side = st.builds(Side, VALUES, _VERSIONS, clocks, st.sampled_from("pq"))
    return st.lists(side, min_size=3, max_size=3)


_STORE_ORDER, _CLOCK_ORDER = _three(st.none()), _three(_HYBRID)
_MERGING = st.sampled_from([ORSet, ORMap]).flatmap(states).map(lambda three: [Side(one) for one in three])


def test_every_resolver_of_the_table_keeps_the_laws_it_promises() -> None:
    sides = {"lww": _STORE_ORDER | _CLOCK_ORDER, "crdt": _MERGING}
    promising = [name for name, resolver in RESOLVERS.items() if resolver.laws]
    assert set(promising) == set(sides)
    settings.register_profile("laws", deadline=None, max_examples=40)
    settings.load_profile("laws")
    try:
        for name in promising:
            check_resolver_laws(name, sides[name])
    finally:
        settings.load_profile("cenote")


@settings(max_examples=40)
@given(_STORE_ORDER | _CLOCK_ORDER)
def test_the_last_write_is_the_same_in_every_order_of_delivery(sides: list[Side]) -> None:
    outcomes = []
    for order in permutations(sides):
        stands = order[0]
        for incoming in (*order[1:], *order):
            found = resolve(stands, incoming, "lww")
            assert found.discarded in ((stands,), (incoming,))
            stands = found.side
        outcomes.append((stands.version, stands.clock, stands.value))
    assert all(one == outcomes[0] for one in outcomes)


@settings(max_examples=50)
@given(VALUES, VALUES)
def test_equal_times_have_one_winner_whoever_came_first(one: Any, other: Any) -> None:
    """The specification's `>=` of 3.2 and `>` of 6.2 keep opposite sides of a tie."""
    clock = HybridClock(7, 0, "a")
    first, second = Side(one, Version(1, 1), clock), Side(other, Version(1, 1), clock)
    assert resolve(first, second, "lww").value == resolve(second, first, "lww").value


@settings(max_examples=50)
@given(_three(_CAUSAL))
def test_dominance_decides_and_what_is_concurrent_is_carried_out(sides: list[Side]) -> None:
    current, incoming, _ = sides
    assert isinstance(current.clock, VectorClock)
    assert isinstance(incoming.clock, VectorClock)
    joined = current.clock.merge(incoming.clock)
    known = current.clock != incoming.clock or canonical(current.value) == canonical(incoming.value)
    if known and joined in (current.clock, incoming.clock):
        assert resolve(current, incoming, "causal").side.clock == joined
        return
    with pytest.raises(UnresolvedError) as caught:
        resolve(current, incoming, "causal")
    assert (caught.value.current, caught.value.incoming) == (current, incoming)


@settings(max_examples=10)
@given(_STORE_ORDER)
def test_reject_tells_whoever_comes_second(sides: list[Side]) -> None:
    with pytest.raises(ConflictError):
        resolve(sides[0], sides[1], "reject")
