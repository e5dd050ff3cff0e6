"""LAST_WRITE_WINS: one total order, so that everybody keeps the same write, whoever is told of it first (S17).

- Plain values stand in the store's own order, their version. A write that has none yet comes after all that have one:
  there it will be stored. Two without any are ordered by their canonical bytes.
- Values with a hybrid clock stand in the order of (`wall_ms`, `counter`, `actor`), which asks no wall. An actor never
  gives out one clock twice; if one did all the same, the canonical bytes decide, and not the version, which is not the
  same everywhere. The version tells apart only what is one value.

This replaces two rules of the specification that keep opposite sides of a tie: `>=` of its 3.2 the incoming write, `>`
of its 6.2 the current one. Under either the outcome depends on who came first; here a tie is left only between equal
values. A key's writes all carry a clock or none of them does: an order of both kinds could run in a ring.
"""

from typing import Any, Final

from cenote.conflict.sides import ALL_LAWS, Resolution, Side, one_of
from cenote.errors import RejectedError
from cenote.model.canonical import canonical
from cenote.model.clock import HybridClock

_NO_VERSION: Final = (1, 0, 0)


class LastWriteWins:
    """The newer side; of two equal ones the current, which is the same value."""

    laws = ALL_LAWS

    def __call__(self, current: Side, incoming: Side, ancestor: Side | None = None) -> Resolution:
        """Both sides ordered; the older one is discarded.

        RejectedError when only one carries a clock, or one that is no HybridClock.
        """
        mine, other = current.clock, incoming.clock
        versions = _sign(_version(current), _version(incoming))
        if mine is None and other is None:
            order = versions or _by_bytes(current, incoming)
        elif isinstance(mine, HybridClock) and isinstance(other, HybridClock):
            order = _sign(mine.check(), other.check()) or _by_bytes(current, incoming) or versions
        else:
            raise RejectedError(
                f"lww: the current value has {_named(current)}, the incoming one {_named(incoming)}",
                hint="write all values of a key with a HybridClock, or none of them",
            )
        return one_of(current, incoming, "current" if order >= 0 else "incoming")


def _version(side: Side) -> tuple[int, int, int]:
    return _NO_VERSION if side.version is None else (0, *side.version)


def _by_bytes(current: Side, incoming: Side) -> int:
    return _sign(canonical(current.value), canonical(incoming.value))


def _sign(one: Any, other: Any) -> int:
    return int(one > other) - int(one < other)


def _named(side: Side) -> str:
    return "no clock" if side.clock is None else f"the {type(side.clock).__name__} {side.clock.to_json()}"
