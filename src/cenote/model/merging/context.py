"""Which changes a state has seen: a version vector, and a cloud of single dots beyond it that is normally empty.

After Almeida, Shoker, Baquero: "Delta state replicated data types" (2018), section 7.2. A dot `(actor, n)` names one
change, for ever. What is in a context and no longer in the content was removed: so a removal leaves no tombstone.
"""

from collections.abc import Iterable

Dot = tuple[str, int]


class Context:
    """A set of dots; contiguous ones cost one entry for each actor."""

    __slots__ = ("cloud", "vector")

    def __init__(self, vector: dict[str, int] | None = None, cloud: Iterable[Dot] = ()) -> None:
        self.vector = {} if vector is None else vector
        self.cloud = set(cloud)
        if self.cloud:
            self._compact()

    def __contains__(self, dot: Dot) -> bool:
        return dot[1] <= self.vector.get(dot[0], 0) or (bool(self.cloud) and dot in self.cloud)

    def next(self, actor: str) -> Dot:
        """A new dot of the actor, from now on seen."""
        top = max([self.vector.get(actor, 0), *(number for name, number in self.cloud if name == actor)])
        dot = (actor, top + 1)
        self.add(dot)
        return dot

    def add(self, dot: Dot) -> None:
        """From now on it was seen."""
        if dot[1] == self.vector.get(dot[0], 0) + 1 and not self.cloud:
            self.vector[dot[0]] = dot[1]
        elif dot not in self:
            self.cloud.add(dot)
            self._compact()

    def join(self, other: "Context") -> "Context":
        """What either has seen."""
        vector = dict(self.vector)
        for actor, number in other.vector.items():
            if number > vector.get(actor, 0):
                vector[actor] = number
        return Context(vector, self.cloud | other.cloud)

    def without(self, actors: Iterable[str], seen: "Context") -> "Context":
        """A copy that forgets these actors' dots, but for those in `seen`."""
        gone = set(actors)
        vector = {actor: number for actor, number in self.vector.items() if actor not in gone}
        cloud = {dot for dot in self.cloud if dot[0] not in gone or dot in seen}
        for actor in gone:
            number = self.vector.get(actor, 0)
            if kept := min(number, seen.vector.get(actor, 0)):
                vector[actor] = kept
            cloud.update(dot for dot in seen.cloud if dot[0] == actor and dot[1] <= number)
        return Context(vector, cloud)

    def actors(self) -> set[str]:
        """Whose changes were seen."""
        return {*self.vector, *(actor for actor, _ in self.cloud)}

    def copy(self) -> "Context":
        """One that may be changed for itself."""
        return Context(dict(self.vector), self.cloud)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Context):
            return NotImplemented
        return self.vector == other.vector and self.cloud == other.cloud

    __hash__ = None  # type: ignore[assignment]  # it changes

    def _compact(self) -> None:
        kept = set()
        for dot in sorted(self.cloud):
            actor, number = dot
            top = self.vector.get(actor, 0)
            if number == top + 1:
                self.vector[actor] = number
            elif number > top:
                kept.add(dot)
        self.cloud = kept
