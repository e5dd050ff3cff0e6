"""Two clocks that values may carry: a hybrid one that orders all writes, a vector one that tells what saw what.

Both are immutable and pure: the wall's time is an argument. Comparing two of them never asks a wall.
"""

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Final, NamedTuple

from cenote import limits
from cenote.errors import RejectedError

_ACTOR: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{limits.ACTOR_CHARS_MAX}}}")


class HybridClock(NamedTuple):
    """Wall time, a counter, and the actor as the last tie-break: one total order of all writes.

    After Kulkarni, Demirbas, Madappa, Avva, Leone: "Logical Physical Clocks" (OPODIS 2014), section 3.3: what happened
    before has the smaller clock, and the clock stays near the wall's time.

    Attributes:
        wall_ms: milliseconds since 1970, of the wall or of a clock that was received.
        counter: events at the same `wall_ms`.
        actor: whose clock it is.
    """

    wall_ms: int
    counter: int
    actor: str

    def now(self, wall_ms: int) -> "HybridClock":
        """The clock of the next event of this actor, at the wall's time."""
        check_number("wall_ms", wall_ms)
        if wall_ms > self.wall_ms:
            return HybridClock(wall_ms, 0, self.actor)
        return HybridClock(self.wall_ms, self.counter + 1, self.actor)

    def receive(self, remote: "HybridClock", wall_ms: int) -> "HybridClock":
        """The clock of having seen `remote`; RejectedError when that is too far ahead of the wall to be followed."""
        remote.check().check_drift(wall_ms)
        ahead = max(self, remote)
        return HybridClock(ahead.wall_ms, ahead.counter, self.actor).now(wall_ms)

    def check_drift(self, wall_ms: int) -> None:
        """RejectedError when it is further ahead of the wall than clocks may be apart."""
        if self.wall_ms - wall_ms > limits.CLOCK_DRIFT_MS_MAX:
            raise RejectedError(
                f"clock: {self.wall_ms} of {self.actor} is {self.wall_ms - wall_ms} ms ahead of {wall_ms}; "
                f"the limit is {limits.CLOCK_DRIFT_MS_MAX} ms",
                hint="set the time of one of the two machines right",
            )

    def check(self) -> "HybridClock":
        """Itself; RejectedError when a number or the actor cannot be meant."""
        check_number("wall_ms", self.wall_ms)
        check_number("counter", self.counter)
        check_actor(self.actor)
        return self

    def to_json(self) -> list[Any]:
        """`[wall_ms, counter, actor]`."""
        return list(self)

    @classmethod
    def from_json(cls, parts: object) -> "HybridClock":
        """The clock behind its JSON form; RejectedError when it is none."""
        if not isinstance(parts, list | tuple) or len(parts) != 3:
            raise RejectedError("clock: [wall_ms, counter, actor] is needed")
        return cls(*parts).check()


class Order(Enum):
    """How two vector clocks stand to each other."""

    BEFORE = "BEFORE"
    AFTER = "AFTER"
    EQUAL = "EQUAL"
    CONCURRENT = "CONCURRENT"


class VectorClock(Mapping[str, int]):
    """How many events of each actor were seen; decides exactly which of two writes knew of the other.

    After Fidge (1988) and Mattern (1989). An actor without events is not in it.
    """

    __slots__ = ("_events",)

    def __init__(self, events: Mapping[str, int] | None = None) -> None:
        self._events: dict[str, int] = {}
        if events is None:
            return
        if not isinstance(events, Mapping):
            raise RejectedError(f"clock: a mapping from actors to numbers is needed, not {type(events).__name__}")
        if len(events) > limits.CLOCK_ACTORS_MAX:
            raise RejectedError(f"clock: {len(events)} actors; the limit is {limits.CLOCK_ACTORS_MAX}")
        for actor, number in events.items():
            check_actor(actor)
            check_number(actor, number)
            if number:
                self._events[actor] = number

    def increment(self, actor: str) -> "VectorClock":
        """The clock of this actor's next event."""
        return VectorClock(self._events | {actor: self[actor] + 1})

    def merge(self, other: "VectorClock") -> "VectorClock":
        """The clock of having seen what either has seen."""
        return VectorClock({actor: max(self[actor], other[actor]) for actor in self._events | other._events})

    def compare(self, other: "VectorClock") -> Order:
        """Whether this one is before the other, after it, the same, or neither knows of the other."""
        behind = any(self[actor] < number for actor, number in other._events.items())
        ahead = any(number > other[actor] for actor, number in self._events.items())
        if behind:
            return Order.CONCURRENT if ahead else Order.BEFORE
        return Order.AFTER if ahead else Order.EQUAL

    def to_json(self) -> dict[str, int]:
        """`{actor: events}`, by name."""
        return dict(sorted(self._events.items()))

    @classmethod
    def from_json(cls, events: object) -> "VectorClock":
        """The clock behind its JSON form; RejectedError when it is none."""
        if not isinstance(events, dict):
            raise RejectedError(f"clock: an object is needed, not {type(events).__name__}")
        return cls(events)

    def __getitem__(self, actor: str) -> int:
        return self._events.get(actor, 0)

    def __contains__(self, actor: object) -> bool:
        return actor in self._events

    def __iter__(self) -> Iterator[str]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def __eq__(self, other: object) -> bool:
        return self._events == other._events if isinstance(other, VectorClock) else NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self._events.items()))

    def __repr__(self) -> str:
        return f"VectorClock({self.to_json()})"


def check_number(what: str, number: object) -> int:
    """The number itself; RejectedError unless it is an int from 0 to 2**53 - 1."""
    if type(number) is not int or not 0 <= number <= limits.CLOCK_NUMBER_MAX:
        shown = type(number).__name__ if type(number) is not int else "a number out of range"
        raise RejectedError(f"clock: {what} must be an int from 0 to {limits.CLOCK_NUMBER_MAX}, not {shown}")
    return number


def check_actor(actor: object) -> str:
    """The actor itself; RejectedError unless it is a short name."""
    if type(actor) is not str or not _ACTOR.fullmatch(actor):
        raise RejectedError(
            f"clock: an actor is 1 to {limits.ACTOR_CHARS_MAX} letters, digits, '.', '_' and '-', "
            f"not {ascii(actor)[:80]}"
        )
    return actor
