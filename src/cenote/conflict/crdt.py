"""CRDT_MERGE: the join of two merging values of one type; nothing is discarded."""

from cenote.conflict.sides import ALL_LAWS, Resolution, Side, later_version
from cenote.model.clock import HybridClock, VectorClock
from cenote.model.merging import merge


class CrdtMerge:
    """The join; RejectedError names both types when they differ."""

    laws = ALL_LAWS

    def __call__(self, current: Side, incoming: Side, ancestor: Side | None = None) -> Resolution:
        """Both sides' changes, the newer version, and the join of the clocks."""
        value = merge(current.value, incoming.value)
        clock = _joined(current.clock, incoming.clock)
        return Resolution(Side(value, later_version(current, incoming), clock, incoming.writer), "merged")


def _joined(
    mine: HybridClock | VectorClock | None, other: HybridClock | VectorClock | None
) -> HybridClock | VectorClock | None:
    if isinstance(mine, VectorClock) and isinstance(other, VectorClock):
        return mine.merge(other)
    if isinstance(mine, HybridClock) and isinstance(other, HybridClock):
        return max(mine, other)
    return None  # the merged value carries its own order
