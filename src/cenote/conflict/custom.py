"""CUSTOM_MERGE: your own pure function of both values, and of their common ancestor where it is known.

What it left out only the function knows, so both sides count as discarded: the conflict log keeps them.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from cenote.conflict.sides import NO_LAWS, Resolution, Side, later_version
from cenote.errors import RejectedError
from cenote.model import value as values


class CustomMerge:
    """By a function.

    Args:
        merge: pure: (current, incoming, ancestor or None) → value. None: there is none yet.
        laws: what it keeps of "commutative", "associative", "idempotent".
    """

    def __init__(self, merge: Callable[[Any, Any, Any], Any] | None = None, *, laws: frozenset[str] = NO_LAWS) -> None:
        self._merge = merge
        self.laws = laws

    def __call__(self, current: Side, incoming: Side, ancestor: Side | None = None) -> Resolution:
        """What the function makes of both; RejectedError when it raises, or returns what cannot be stored."""
        if self._merge is None:
            raise RejectedError(
                "custom: no merge function is registered", hint='register("custom", CustomMerge(merge))'
            )
        value = merged_by(self._merge, current, incoming, ancestor)
        return Resolution(
            Side(value, later_version(current, incoming), None, incoming.writer), "merged", (current, incoming)
        )


def merged_by(merge: Callable[[Any, Any, Any], Any], current: Side, incoming: Side, ancestor: Side | None) -> Any:
    """The function's value; it is given copies, so that it cannot change what the conflict log will keep."""
    name = getattr(merge, "__qualname__", repr(merge))
    try:
        base = None if ancestor is None else deepcopy(ancestor.value)
        value = merge(deepcopy(current.value), deepcopy(incoming.value), base)
    except Exception as error:
        raise RejectedError(f"merge function {name} raised {type(error).__name__}: {error}") from error
    try:
        values.encode(value)
    except RejectedError as error:
        raise RejectedError(f"merge function {name} returned what cannot be stored: {error}") from error
    return value
