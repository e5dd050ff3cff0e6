"""Random histories of merging values: processes with diverging copies of one value under compare-and-set."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st

from cenote.model.merging import (
    KINDS,
    Actors,
    AppendLog,
    GCounter,
    GSet,
    LWWRegister,
    Merging,
    MVRegister,
    ORMap,
    ORSet,
    PNCounter,
)


@contextmanager
def examples(number: int, phases: Iterable[Phase] = tuple(Phase)) -> Iterator[None]:
    """So many examples for the laws within."""
    settings.register_profile("laws", deadline=None, max_examples=number, phases=phases)
    settings.load_profile("laws")
    try:
        yield
    finally:
        settings.load_profile("cenote")


def change(value: Any, random: Random) -> None:
    """One random local change."""
    letter, wall_ms = random.choice(["a", "b", "c", 1, True]), random.randrange(5)
    if isinstance(value, PNCounter) and random.random() < 0.5:
        value.decrement(random.randint(1, 3))
    elif isinstance(value, GCounter):
        value.increment(random.randint(1, 3))
    elif isinstance(value, ORSet) and random.random() < 0.4:
        value.discard(letter)
    elif isinstance(value, GSet):
        if value.limit is None or len(value) < value.limit or letter in value:
            value.add(letter)
    elif isinstance(value, LWWRegister):
        value.set(letter, wall_ms=wall_ms)
    elif isinstance(value, MVRegister):
        value.set(letter)
    elif isinstance(value, AppendLog):
        value.append(letter, wall_ms=wall_ms)
    elif isinstance(value, ORMap):
        change_map(value, random)


def change_map(board: ORMap, random: Random) -> None:
    """Set, remove or change a field."""
    name, deed = random.choice("xy"), random.random()
    if name not in board or deed < 0.15:
        board[name] = new(KINDS[random.choice(sorted(KINDS))], random)
    elif deed < 0.35:
        board.discard(name)
    else:
        change(board[name], random)


def new(cls: type[Merging], random: Random) -> Any:
    """An empty value; of those that may be bounded, some are."""
    return cls(limit=3) if issubclass(cls, AppendLog | GSet) and random.random() < 0.5 else cls()


def states(cls: type[Merging]) -> st.SearchStrategy[list[Any]]:
    """Three states of one history: changed, settled, adopted, merged, copied at random."""

    def run(random: Random) -> list[Any]:
        stored, copies = new(cls, random).settle(None, "p9"), []
        for _ in range(3):
            copies.append(stored.copy())
        for _ in range(random.randrange(25)):
            i, deed = random.randrange(3), random.random()
            if deed < 0.6:
                change(copies[i], random)
            elif deed < 0.75:
                copies[i] = copies[i].merge(random.choice(copies))
            elif deed < 0.9:
                settled = copies[i].settle(stored, f"p{i}")
                stored = settled.copy()
                copies[i].adopt(settled)
            else:
                copies[i] = stored.copy()
        return [copy.copy() for copy in copies]

    return st.randoms(use_true_random=False).map(run)


class Register:
    """A key under compare-and-set, as a store would have it."""

    def __init__(self) -> None:
        self.value: Any = None
        self.version = 0

    def get(self) -> tuple[Any, int]:
        return None if self.value is None else self.value.copy(), self.version

    def put(self, value: Any, version: int) -> bool:
        if version != self.version:
            return False
        self.value, self.version = value.copy(), version + 1
        return True


__all__ = ["Actors", "Register", "change", "examples", "new", "states"]
