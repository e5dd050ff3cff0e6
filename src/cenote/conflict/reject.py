"""REJECT: whoever comes second is told."""

from cenote.conflict.sides import NO_LAWS, Resolution, Side
from cenote.errors import ConflictError


class Reject:
    """A ConflictError, whatever the sides are."""

    laws = NO_LAWS

    def __call__(self, current: Side, incoming: Side, ancestor: Side | None = None) -> Resolution:
        """Never returns."""
        raise ConflictError(
            f"another write came first: {current.version or 'of unknown version'} of {current.writer or 'somebody'}",
            hint="read again",
        )
