"""VECTOR_CLOCK: a side that has seen the other replaces it; two that have not are for a merge function, or for you."""

from collections.abc import Callable
from typing import Any

from cenote.conflict.custom import merged_by
from cenote.conflict.sides import NO_LAWS, Resolution, Side, later_version, one_of
from cenote.errors import RejectedError, UnresolvedError
from cenote.model.canonical import canonical
from cenote.model.clock import Order, VectorClock


class Causal:
    """By dominance.

    Args:
        merge: pure: (current, incoming, ancestor or None) → value, for concurrent sides; without it they are an
            UnresolvedError that carries both.
        laws: what `merge` keeps, on top of dominance.
    """

    def __init__(self, merge: Callable[[Any, Any, Any], Any] | None = None, *, laws: frozenset[str] = NO_LAWS) -> None:
        self._merge = merge
        self.laws = laws

    def __call__(self, current: Side, incoming: Side, ancestor: Side | None = None) -> Resolution:
        """The side that knew of the other, or the merged one with both sides' knowledge."""
        mine, other = current.clock, incoming.clock
        if not isinstance(mine, VectorClock) or not isinstance(other, VectorClock):
            raise RejectedError("causal: both sides must carry a VectorClock")
        order = mine.compare(other)
        if order is Order.AFTER:
            return one_of(current, incoming, "current")
        if order is Order.BEFORE:
            return Resolution(incoming, "incoming")  # made from what is there: nobody's write is lost
        if order is Order.EQUAL and canonical(current.value) == canonical(incoming.value):
            newest = later_version(current, incoming)
            return one_of(current, incoming, "current" if newest == current.version else "incoming")
        if self._merge is None:
            raise UnresolvedError("two writes did not know of each other", current=current, incoming=incoming)
        value = merged_by(self._merge, current, incoming, ancestor)
        side = Side(value, later_version(current, incoming), mine.merge(other), incoming.writer)
        return Resolution(side, "merged", (current, incoming))
