"""Breadth-first search over everything that may happen, and the shortest story of what goes wrong.

A model says how its world may change; the search visits every world that can be reached. A world is a tuple of tuples,
so two worlds that look alike are one. The first violation met is one with the fewest steps, and its story is the way
there.
"""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

Label = tuple[Any, ...]
"""A sentence with its gaps, and what fills them; put together only for a story."""
Step = tuple[Label, Any]


class Violation(Exception):
    """An invariant does not hold in a world that can be reached."""


class Model:
    """What the search needs to know of a model."""

    def start(self) -> Any:
        """The world in which everything begins."""
        raise NotImplementedError

    def steps(self, world: Any) -> Iterator[Step]:
        """What a process may do next. A process that is not chosen is frozen, for as long as it takes."""
        raise NotImplementedError

    def faults(self, world: Any) -> Iterator[Step]:
        """What may happen to the world; a world in which only this can happen is at rest."""
        yield from ()

    def at_rest(self, world: Any) -> None:
        """Raise Violation unless all is well now that nobody can move."""

    def canonical(self, world: Any) -> Any:
        """One world for all that differ in names only."""
        return world


class Outcome(NamedTuple):
    """What a search found; without a violation and `complete`, the model holds in this scope."""

    states: int
    rests: int
    complete: bool
    violation: str | None
    story: list[str]
    reached: Counter[str]
    seconds: float

    def told(self) -> str:
        """In plain words."""
        verdict = self.violation or ("holds" if self.complete else "NOT COMPLETE")
        head = f"{self.states:,} states, {self.rests:,} at rest, {self.seconds:.1f} s: {verdict}"
        return "\n".join([head, *(f"  {number:2}. {line}" for number, line in enumerate(self.story, 1))])

    def saw(self, words: str) -> int:
        """How many steps were taken whose sentence contains `words`."""
        return sum(count for sentence, count in self.reached.items() if words in sentence)


def explore(model: Model, *, states_max: int = 2_000_000) -> Outcome:
    """Visit all worlds, nearest first, until something is violated. No limit is one of time."""
    began, rests = time.monotonic(), 0
    first = model.canonical(model.start())
    came: dict[Any, Any] = {first: None}
    reached: Counter[str] = Counter()
    queue = [first]
    canonical = model.canonical
    for world in queue:
        moved = False
        try:
            for number, steps in enumerate((model.steps, model.faults)):
                for label, after in steps(world):
                    moved = moved or number == 0
                    reached[label[0]] += 1
                    after = canonical(after)
                    if after not in came:
                        came[after] = world
                        queue.append(after)
                if number == 0 and not moved:
                    rests += 1
                    model.at_rest(world)
        except Violation as bad:
            story = _story(model, came, world)
            return Outcome(len(came), rests, True, str(bad), story, reached, time.monotonic() - began)
        if len(came) > states_max:
            return Outcome(len(came), rests, False, None, [], reached, time.monotonic() - began)
    return Outcome(len(came), rests, True, None, [], reached, time.monotonic() - began)


def _story(model: Model, came: dict[Any, Any], world: Any) -> list[str]:
    lines = []
    while came[world] is not None:
        before = came[world]
        lines.append(_between(model, before, world))
        world = before
    return lines[::-1]


def _between(model: Model, before: Any, world: Any) -> str:
    for steps in (model.steps, model.faults):
        for label, after in steps(before):
            if model.canonical(after) == world:
                return str(label[0]).format(*label[1:])
    raise AssertionError("a world without a way to it")
