"""Counters: concurrent increments all count.

Each actor's contribution is one dot with what it has added and taken away; an increment replaces the actor's own dot
(the causal counter of Almeida, Shoker, Baquero 2018, so that a map's field can be removed as any other).
"""

from collections.abc import Callable
from typing import Any, ClassVar

from cenote import limits
from cenote.errors import RejectedError
from cenote.model.merging.base import Merging


class GCounter(Merging):
    """A counter that only grows."""

    KIND: ClassVar[str] = "gcounter"
    COLUMNS: ClassVar[tuple[str, ...]] = ("parts",)

    def __init__(self, value: int = 0) -> None:
        super().__init__()
        if value:
            self.increment(value)

    @property
    def value(self) -> int:
        """The sum of all that was counted."""
        return sum(plus - minus for plus, minus in self._dots.values())

    def increment(self, by: int = 1) -> None:
        """Count `by` more, a positive int."""
        self._count(_positive(by), 0)

    def _count(self, plus: int, minus: int) -> None:
        mine = [dot for dot in self._dots if self._causes.writes_as(dot[0])]
        for dot in mine:
            before = self._dots[dot]
            plus, minus = plus + before[0], minus + before[1]
        self._record((plus, minus), mine)

    def _fold(self, actor: str) -> None:
        mine = [dot for dot in self._dots if dot[0] == actor]
        if len(mine) > 1:
            plus = sum(self._dots[dot][0] for dot in mine)
            minus = sum(self._dots[dot][1] for dot in mine)
            self._forget(mine)
            self._dots[self._causes.context.next(actor)] = (plus, minus)

    def _headline(self) -> dict[str, Any]:
        return {"value": self.value}

    def _pack(self, payload: Any, plain: Callable[[Any], Any]) -> tuple[Any, ...]:
        return (plain(list(payload)),)

    def _unpack(self, cells: tuple[Any, ...], untag: Callable[[Any], Any]) -> Any:
        plus, minus = cells[0]
        if type(plus) is not int or type(minus) is not int or plus < 0 or minus < 0 or (minus and self._only_grows()):
            raise ValueError("a part of a counter is [added, taken away]")
        return plus, minus

    @classmethod
    def _only_grows(cls) -> bool:
        return True

    def _shown(self) -> str:
        return str(self.value)


class PNCounter(GCounter):
    """A counter that goes up and down."""

    KIND: ClassVar[str] = "pncounter"

    def __init__(self, value: int = 0) -> None:
        super().__init__(max(value, 0) if type(value) is int else value)
        if type(value) is int and value < 0:
            self.decrement(-value)

    def decrement(self, by: int = 1) -> None:
        """Count `by` less, a positive int."""
        self._count(0, _positive(by))

    @classmethod
    def _only_grows(cls) -> bool:
        return False


def _positive(by: object) -> int:
    if type(by) is not int or not 0 < by <= limits.CLOCK_NUMBER_MAX:
        raise RejectedError(f"counter: an int from 1 to {limits.CLOCK_NUMBER_MAX} is needed, not {ascii(by)[:60]}")
    return by
