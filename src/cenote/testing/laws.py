"""The laws that make merging safe, for your own resolvers and values: Hypothesis looks for a counterexample.

Needs `hypothesis`, which cenote itself does not bring.
"""

from itertools import permutations
from typing import Any

from cenote.conflict import RESOLVERS, Side
from cenote.errors import CenoteError
from cenote.model import value as values
from cenote.model.canonical import canonical
from cenote.model.merging import Merging


def check_merging_laws(cls: type[Merging], strategy: Any) -> None:
    """Commutative, associative, idempotent, and independent of delivery order and duplication.

    Args:
        cls: the type of merging value.
        strategy: draws lists of three states of one history.
    """
    from hypothesis import given

    @given(strategy)
    def laws(states: list[Any]) -> None:
        a, b, c = states
        before = [state.copy() for state in states]
        assert all(type(state) is cls for state in states)
        assert a.merge(b) == b.merge(a)
        assert a.merge(b).merge(c) == a.merge(b.merge(c))
        assert a.merge(a) == a == values.decode(*values.encode(a))
        outcomes = [x.merge(y).merge(z).merge(y).merge(x) for x, y, z in permutations(states)]
        assert all(one == outcomes[0] for one in outcomes)
        assert states == before

    laws()


def check_resolver_laws(name: str, strategy: Any) -> None:
    """What the resolver's `laws` promise, and for all of them that the same sides have the same outcome.

    A refusal is an outcome, too: a law that holds only if both ways refuse alike is held to that.

    Args:
        name: as it stands in `cenote.conflict.RESOLVERS`.
        strategy: draws lists of three sides, as the store could meet them under one key.
    """
    from hypothesis import given

    resolver = RESOLVERS[name]

    @given(strategy)
    def laws(sides: list[Side]) -> None:
        def joined(one: Side | type, other: Side | type) -> Side | type:
            if isinstance(one, type) or isinstance(other, type):
                return CenoteError
            try:
                return resolver(one, other, None).side
            except CenoteError:
                return CenoteError

        a, b, c = sides
        assert _same(joined(a, b), joined(a, b))
        if "commutative" in resolver.laws:
            assert _same(joined(a, b), joined(b, a))
        if "associative" in resolver.laws:
            assert _same(joined(joined(a, b), c), joined(a, joined(b, c)))
        if "idempotent" in resolver.laws:
            assert _same(joined(a, a), a)
            assert _same(joined(joined(a, b), b), joined(a, b))

    laws()


def _same(one: Side | type, other: Side | type) -> bool:
    if isinstance(one, type) or isinstance(other, type):
        return one is other
    same_value = one.value == other.value and (
        isinstance(one.value, Merging) or canonical(one.value) == canonical(other.value)
    )
    return same_value and one.clock == other.clock and one.version == other.version
