"""What a resolver is given, and what it answers: small, frozen, pure."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from cenote.model.clock import HybridClock, VectorClock
from cenote.model.entry import Version

Winner = Literal["current", "incoming", "merged"]


@dataclass(frozen=True, slots=True)
class Side:
    """One of two values that met under one key.

    Attributes:
        value: decoded.
        version: of its write; None while it has none.
        clock: the time or the knowledge that the value carries, if it does.
        writer: the process that wrote it.
    """

    value: Any
    version: Version | None = None
    clock: HybridClock | VectorClock | None = None
    writer: str = ""


@dataclass(frozen=True, slots=True)
class Resolution:
    """The outcome: what stands now, and each side that does not live on in it."""

    side: Side
    winner: Winner
    discarded: tuple[Side, ...] = field(default=())

    @property
    def value(self) -> Any:
        """The value that stands now."""
        return self.side.value


class Resolver(Protocol):
    """Decides between two sides; pure. `laws`: those of "commutative", "associative", "idempotent" that it keeps."""

    @property
    def laws(self) -> frozenset[str]: ...

    def __call__(self, current: Side, incoming: Side, ancestor: Side | None) -> Resolution: ...


ALL_LAWS = frozenset({"commutative", "associative", "idempotent"})
NO_LAWS: frozenset[str] = frozenset()


def one_of(current: Side, incoming: Side, winner: Winner) -> Resolution:
    """One side as it is; the other one is discarded."""
    if winner == "current":
        return Resolution(current, winner, (incoming,))
    return Resolution(incoming, winner, (current,))


def later_version(one: Side, other: Side) -> Version | None:
    """The newer version of both sides."""
    return max(filter(None, (one.version, other.version)), default=None)
