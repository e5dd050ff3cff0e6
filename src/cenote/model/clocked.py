"""A plain value together with its time or its knowledge, so that two writes of it can be told apart.

As JSON, so that SQL can query it: `{"$clocked": {"value": …, "hlc": [wall_ms, counter, actor]}}`, or with
`"vector": {actor: events}`. What decides between two of them is `conflict/`'s.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cenote.errors import RejectedError
from cenote.model import tags
from cenote.model.clock import HybridClock, VectorClock
from cenote.model.merging.base import Merging


@dataclass(frozen=True, slots=True)
class Clocked:
    """A value and its clock.

    Attributes:
        value: whatever can be stored, but for a merging value and another `Clocked`: these carry their own order.
        clock: a HybridClock, by which the newest of all wins, or a VectorClock, which tells what knew of what.

    Raises:
        RejectedError: the clock is malformed (`limits.py`), or the value has an order of its own.
    """

    value: Any
    clock: HybridClock | VectorClock

    def __post_init__(self) -> None:
        if isinstance(self.clock, HybridClock):
            self.clock.check()
        elif not isinstance(self.clock, VectorClock):
            raise RejectedError(f"clocked: a HybridClock or a VectorClock is needed, not {type(self.clock).__name__}")
        if isinstance(self.value, Merging | Clocked):
            raise RejectedError(f"clocked: {type(self.value).__name__} has an order of its own; store it as it is")


def write(clocked: Clocked, plain: Callable[[Any], Any]) -> dict[str, Any]:
    """What stands behind the tag; `plain` tags the value."""
    name = "hlc" if isinstance(clocked.clock, HybridClock) else "vector"
    return {"value": plain(clocked.value), name: clocked.clock.to_json()}


def read(body: Any) -> Clocked:
    """The value behind its form; ValueError and the like when it is malformed."""
    try:
        if body.keys() == {"value", "hlc"}:
            return Clocked(tags.untag(body["value"]), HybridClock.from_json(body["hlc"]))
        if body.keys() == {"value", "vector"}:
            return Clocked(tags.untag(body["value"]), VectorClock.from_json(body["vector"]))
    except RejectedError as error:
        raise ValueError(str(error)) from error
    raise ValueError("a clocked value has `value`, and `hlc` or `vector`")
