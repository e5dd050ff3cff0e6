"""LAST_WRITE_WINS: one total order, so that everybody keeps the same write (S17).

By hybrid clock where both sides carry one, else by the store's own order, the version; ties end with the version, and
then with the value's canonical bytes. Where some writes of a key carry clocks and others do not, each pair is decided
by what both have; then three of them can stand in a ring, and the laws hold for writes of one kind only.
"""

from cenote.conflict.sides import ALL_LAWS, Resolution, Side, one_of
from cenote.model.canonical import canonical
from cenote.model.clock import HybridClock
from cenote.model.entry import Version


class LastWriteWins:
    """The newer side; of two equal ones the current, which is the same value."""

    laws = ALL_LAWS

    def __call__(self, current: Side, incoming: Side, ancestor: Side | None = None) -> Resolution:
        """Both sides ordered; the older one is discarded."""
        ours, theirs = current.version or Version(0, 0), incoming.version or Version(0, 0)
        order = (ours > theirs) - (ours < theirs)
        mine, other = current.clock, incoming.clock
        if isinstance(mine, HybridClock) and isinstance(other, HybridClock):
            mine.check(), other.check()
            order = (mine > other) - (mine < other) or order
        if not order:
            ours_bytes, theirs_bytes = canonical(current.value), canonical(incoming.value)
            order = (ours_bytes > theirs_bytes) - (ours_bytes < theirs_bytes)
        return one_of(current, incoming, "current" if order >= 0 else "incoming")
