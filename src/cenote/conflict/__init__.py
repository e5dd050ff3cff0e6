"""What happens when two writes meet under one key: pure strategies in one table.

`resolve(current, incoming, strategy)` returns what stands, and what was discarded; it never decides in silence.
"""

from enum import StrEnum
from typing import Any, Final

from cenote.conflict.causal import Causal as Causal
from cenote.conflict.crdt import CrdtMerge as CrdtMerge
from cenote.conflict.custom import CustomMerge as CustomMerge
from cenote.conflict.lww import LastWriteWins as LastWriteWins
from cenote.conflict.reject import Reject as Reject
from cenote.conflict.sides import Resolution as Resolution
from cenote.conflict.sides import Resolver as Resolver
from cenote.conflict.sides import Side as Side
from cenote.errors import RejectedError
from cenote.model.clock import HybridClock
from cenote.model.clocked import Clocked
from cenote.model.merging import Merging


class Strategy(StrEnum):
    """The built-in strategies, by their names in the table."""

    LAST_WRITE_WINS = "lww"
    VECTOR_CLOCK = "causal"
    CRDT_MERGE = "crdt"
    CUSTOM_MERGE = "custom"
    REJECT = "reject"


RESOLVERS: Final[dict[str, Resolver]] = {
    Strategy.LAST_WRITE_WINS: LastWriteWins(),
    Strategy.VECTOR_CLOCK: Causal(),
    Strategy.CRDT_MERGE: CrdtMerge(),
    Strategy.CUSTOM_MERGE: CustomMerge(),
    Strategy.REJECT: Reject(),
}


def register(name: str, resolver: Resolver) -> None:
    """Put a resolver into the table, in place of one of that name; RejectedError when it is none."""
    if type(name) is not str or not name or not callable(resolver) or not isinstance(resolver.laws, frozenset):
        raise RejectedError("register: a name and a resolver with `laws`, a frozenset, are needed")
    RESOLVERS[name] = resolver


def strategy_of(value: Any) -> Strategy | None:
    """The strategy that a value asks for by its own type; None for a plain one, which asks for none."""
    if isinstance(value, Merging):
        return Strategy.CRDT_MERGE
    if isinstance(value, Clocked):
        return Strategy.LAST_WRITE_WINS if isinstance(value.clock, HybridClock) else Strategy.VECTOR_CLOCK
    return None


def resolve(current: Side, incoming: Side, strategy: str, *, ancestor: Side | None = None) -> Resolution:
    """What stands when both sides meet: pure, and the same wherever it is asked.

    Raises:
        RejectedError: there is no such strategy, or the sides do not fit it.
        ConflictError: the strategy refuses; UnresolvedError carries both sides.
    """
    resolver = RESOLVERS.get(strategy)
    if resolver is None:
        raise RejectedError(f"resolve: there is no strategy {ascii(strategy)[:60]}; there are {', '.join(RESOLVERS)}")
    return resolver(current, incoming, ancestor)
