"""Laws of every resolver that stands in the table, and of the one total order that replaces two tie rules (S17)."""

from collections.abc import Iterator
from itertools import permutations
from random import Random
from typing import Any

import pytest
from histories import examples, states
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from values import VALUES

from cenote.conflict import RESOLVERS, Causal, CustomMerge, Resolution, Side, register, resolve
from cenote.conflict.sides import ALL_LAWS, one_of
from cenote.errors import ConflictError, RejectedError, UnresolvedError
from cenote.model.canonical import canonical
from cenote.model.clock import HybridClock, VectorClock
from cenote.model.entry import Version
from cenote.model.merging import ORMap, ORSet
from cenote.testing import check_resolver_laws

_VERSIONS = st.builds(Version, st.just(1), st.integers(1, 3)) | st.none()
_HYBRID = st.builds(HybridClock, st.integers(0, 2), st.integers(0, 1), st.sampled_from("ab"))
_CAUSAL = st.dictionaries(st.sampled_from("ab"), st.integers(0, 2)).map(VectorClock)
_FEW = st.sampled_from([0, 0.0, False, "", None, {"a": 1, "b": 2}, {"b": 2, "a": 1}])


def _three(clocks: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Side]]:
    side = st.builds(Side, _FEW | VALUES, _VERSIONS, clocks, st.sampled_from("pq"))
    return st.lists(side, min_size=3, max_size=3)


_STORE_ORDER, _CLOCK_ORDER, _KNOWLEDGE = _three(st.none()), _three(_HYBRID), _three(_CAUSAL)
_MERGING = st.sampled_from([ORSet, ORMap]).flatmap(states).map(lambda three: [Side(one) for one in three])


# --- the table ----------------------------------------------------------------------------------------------


class Longest:
    """A resolver from outside: the side with the longer text."""

    laws = ALL_LAWS

    def __call__(self, current: Side, incoming: Side, ancestor: Side | None) -> Resolution:
        mine, other = (canonical((side.value, side.version, side.clock)) for side in (current, incoming))
        return one_of(current, incoming, "current" if (len(mine), mine) >= (len(other), other) else "incoming")


class Liar(Longest):
    """Promises all laws, and keeps whatever comes last."""

    def __call__(self, current: Side, incoming: Side, ancestor: Side | None) -> Resolution:
        return one_of(current, incoming, "incoming")


def _unsaid(current: Any, incoming: Any, ancestor: Any) -> list[Any]:
    """A merge function: both values, in one order for all."""
    return sorted((current, incoming), key=canonical)


FROM_OUTSIDE = {
    "longest": Longest(),
    "liar": Liar(),
    "siblings": Causal(_unsaid, laws=frozenset({"commutative"})),
    "pair": CustomMerge(_unsaid, laws=frozenset({"commutative"})),
}
_BUILT_IN = tuple(RESOLVERS)


@pytest.fixture(autouse=True)
def from_outside() -> Iterator[None]:
    for name, resolver in FROM_OUTSIDE.items():
        register(name, resolver)
    yield
    for name in FROM_OUTSIDE:
        del RESOLVERS[name]


SIDES = {
    "lww": _STORE_ORDER | _CLOCK_ORDER,
    "crdt": _MERGING,
    "causal": _KNOWLEDGE,
    "siblings": _KNOWLEDGE,
    "longest": _three(st.none()).map(lambda sides: [Side(side.value) for side in sides]),
}


@pytest.mark.parametrize("name", [*_BUILT_IN, *sorted(FROM_OUTSIDE.keys() - {"liar"})])
def test_every_resolver_of_the_table_keeps_the_laws_it_promises(name: str) -> None:
    with examples(40):
        check_resolver_laws(name, SIDES.get(name, _STORE_ORDER))


def test_a_promise_that_is_not_kept_is_found() -> None:
    with examples(40, [Phase.generate]), pytest.raises(AssertionError):
        check_resolver_laws("liar", _STORE_ORDER)


# --- the last write -----------------------------------------------------------------------------------------


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
        outcomes.append((stands.version, stands.clock, canonical(stands.value)))
    assert all(one == outcomes[0] for one in outcomes)


WRITES = st.lists(st.tuples(_FEW | VALUES, _HYBRID), min_size=1, max_size=6)


def _delivered(writes: list[Any], random: Random, newer: Any) -> set[Any]:
    """What stands at three replicas that are told of all writes, in any order, some twice, each by its own counting."""
    stands: list[Side | None] = [None] * 3
    mail = [(i, write) for i in range(3) for write in writes for _ in range(random.randint(1, 2))]
    random.shuffle(mail)
    for revision, (i, (value, clock)) in enumerate(mail, 1):
        here = stands[i]
        incoming = Side(value, Version(1, revision), clock)
        stands[i] = incoming if here is None else newer(here, incoming)
    return {(side.clock, canonical(side.value)) for side in stands if side is not None}


@settings(max_examples=60)
@given(WRITES, st.randoms(use_true_random=False))
def test_all_replicas_end_with_one_winner(writes: list[Any], random: Random) -> None:
    found = _delivered(writes, random, lambda here, incoming: resolve(here, incoming, "lww").side)
    assert found == {max((clock, canonical(value)) for value, clock in writes)}


@pytest.mark.parametrize("tie", [lambda new, old: new >= old, lambda new, old: new > old], ids=["3.2", "6.2"])
def test_either_rule_of_the_specification_ends_with_several(tie: Any) -> None:
    """Why there is another: `>=` of 3.2 keeps the incoming side of a tie, `>` of 6.2 the current one."""
    writes = [(value, HybridClock(7, 0, "a")) for value in ("first", "second")]

    def newer(here: Side, incoming: Side) -> Side:
        assert here.clock is not None
        return incoming if tie(incoming.clock, here.clock) else here

    assert any(len(_delivered(writes, Random(seed), newer)) > 1 for seed in range(20))


@settings(max_examples=50)
@given(VALUES, VALUES)
def test_equal_times_have_one_winner_whoever_came_first(one: Any, other: Any) -> None:
    clock = HybridClock(7, 0, "a")
    first, second = Side(one, Version(1, 1), clock), Side(other, Version(1, 2), clock)
    again, later = Side(one, Version(2, 9), clock), Side(other, Version(2, 8), clock)
    found = [resolve(*sides, "lww").value for sides in ((first, second), (second, first), (again, later))]
    assert len({canonical(value) for value in found}) == 1


def test_a_write_on_its_way_comes_after_all_that_are_stored() -> None:
    stored, coming = Side("z", Version(9, 9)), Side("a")
    assert resolve(stored, coming, "lww").winner == "incoming"
    assert resolve(coming, stored, "lww").winner == "current"


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        (None, HybridClock(1, 0, "a"), r"current value has no clock, the incoming one the HybridClock \[1, 0, 'a'\]"),
        (HybridClock(1, 0, "a"), None, r"current value has the HybridClock .* the incoming one no clock"),
        (HybridClock(1, 0, "a"), VectorClock({"b": 2}), r"HybridClock .* the incoming one the VectorClock {'b': 2}"),
        (VectorClock(), VectorClock(), r"the VectorClock {}, the incoming one the VectorClock"),
    ],
)
def test_clocks_of_two_kinds_under_one_key_are_refused_and_both_named(one: Any, other: Any, named: str) -> None:
    with pytest.raises(RejectedError, match=named):
        resolve(Side(1, Version(1, 1), one), Side(2, Version(1, 2), other), "lww")


# --- the others ---------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(_KNOWLEDGE)
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
    merged = resolve(current, incoming, "siblings")
    assert (merged.winner, merged.side.clock, merged.discarded) == ("merged", joined, (current, incoming))


@settings(max_examples=10)
@given(_STORE_ORDER)
def test_reject_tells_whoever_comes_second(sides: list[Side]) -> None:
    with pytest.raises(ConflictError):
        resolve(sides[0], sides[1], "reject")
