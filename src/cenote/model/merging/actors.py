"""The names under which one process settles its changes: one for each place, until a state there goes back.

`base.py` says why: an actor may only go on from the newest state that it ever wrote. So a name is used at one place (a
key), and given up where `current` holds less of it than was written: then somebody restored, rewound or replaced
the value, and an older number could be given out twice.
"""

from collections.abc import Hashable

from cenote import limits
from cenote.model.clock import check_actor
from cenote.model.merging.base import Merging


class Actors:
    """One process's names; at most one settled write for each place may be under way at a time.

    Args:
        process: an id that no other process ever has, short enough for a number behind it.
    """

    def __init__(self, process: str) -> None:
        self._process = check_actor(f"{process}.{limits.CLOCK_NUMBER_MAX}").rpartition(".")[0]
        self._names = 0
        self._written: dict[Hashable, tuple[str, int]] = {}

    def actor(self, place: Hashable, current: Merging | None) -> str:
        """The name with which to settle on `current`, the value that is at this place (None: there is none)."""
        name, number = self._written.get(place, ("", 0))
        if not name or number > (0 if current is None else _number(current, name)):
            self._names += 1
            name = f"{self._process}.{self._names}"
            self._remember(place, name, 0)
        return name

    def wrote(self, place: Hashable, settled: Merging, actor: str) -> None:
        """The settled value is stored: from here the actor goes on."""
        self._remember(place, actor, _number(settled, actor))

    def lost(self, place: Hashable) -> None:
        """It is not known whether the settled value is stored: its name is not used again."""
        self._written.pop(place, None)

    def _remember(self, place: Hashable, name: str, number: int) -> None:
        self._written.pop(place, None)
        self._written[place] = (name, number)
        if len(self._written) > limits.ACTOR_PLACES_MAX:
            del self._written[next(iter(self._written))]


def _number(value: Merging, actor: str) -> int:
    return value._causes.context.vector.get(actor, 0)
