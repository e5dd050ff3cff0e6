"""Registers: LWWRegister keeps the write with the newest hybrid clock, MVRegister all that did not know of each other.

Shapiro, Preguiça, Baquero, Zawirski: "A comprehensive study of convergent and commutative replicated data types"
(2011), 3.2. A write replaces what it has seen and, in an LWWRegister, is always newer than that: whoever wrote with a
clock far ahead is overtaken by the next write that has seen his.
"""

import time
from collections.abc import Callable
from typing import Any, ClassVar

from cenote.model.clock import HybridClock
from cenote.model.merging.base import Merging, own_copy
from cenote.model.merging.context import Dot


class Stamped(Merging):
    """Payloads with the hybrid clock of their write."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("items", "stamps")

    def _stamp(self, wall_ms: int | None) -> Callable[[Dot], HybridClock]:
        """Newer than all that is seen here; `wall_ms`: the wall's time, asked if not given."""
        newest = max((stamp for stamp, _ in self._dots.values()), default=HybridClock(0, 0, ""))
        clock = newest.now(time.time_ns() // 1_000_000 if wall_ms is None else wall_ms)
        return lambda dot: HybridClock(clock.wall_ms, clock.counter, dot[0])

    def _record_stamped(self, value: Any, replacing: list[Dot], wall_ms: int | None) -> None:
        stamp, item = self._stamp(wall_ms), own_copy(value)
        dot = self._record(None, replacing)
        self._dots[dot] = (stamp(dot), item)

    def _in_order(self) -> list[tuple[Any, Dot]]:
        """Payloads and their dots, oldest first."""
        return sorted(((payload, dot) for dot, payload in self._dots.items()), key=lambda row: (row[0][0], row[1]))

    def _rows(self) -> list[tuple[Any, list[Dot]]]:
        return [(payload, [dot]) for payload, dot in self._in_order()]

    def _pack(self, payload: Any, plain: Callable[[Any], Any]) -> tuple[Any, ...]:
        stamp, item = payload
        return plain(item), stamp.to_json()

    def _unpack(self, cells: tuple[Any, ...], untag: Callable[[Any], Any]) -> Any:
        return HybridClock.from_json(cells[1]), untag(cells[0])


class LWWRegister(Stamped):
    """One value: the one with the newest hybrid clock."""

    KIND: ClassVar[str] = "lwwregister"

    def __init__(self, *value: Any) -> None:
        super().__init__()
        for one in value[:1]:
            self.set(one)
        if len(value) > 1:
            raise TypeError(f"LWWRegister takes one value, not {len(value)}")

    @property
    def value(self) -> Any:
        """The value, the caller's own; None when none was ever set."""
        return own_copy(self._in_order()[-1][0][1]) if self._dots else None

    @property
    def clock(self) -> HybridClock | None:
        """When it was set; None when it never was."""
        return max((stamp for stamp, _ in self._dots.values()), default=None)

    def set(self, value: Any, *, wall_ms: int | None = None) -> None:
        """Set it; `wall_ms`: the wall's time in ms since 1970, asked if not given."""
        self._record_stamped(value, list(self._dots), wall_ms)

    def _rows(self) -> list[tuple[Any, list[Dot]]]:
        return super()._rows()[::-1]  # the winner first, for SQL users

    def _fold(self, actor: str) -> None:
        if self._touch is not None:
            return  # who removes the field may have seen only the winner: then the others stand
        self._forget([dot for _, dot in self._in_order()[:-1]])

    def _shown(self) -> str:
        return repr(self.value) if self._dots else ""


class MVRegister(Merging):
    """All values that were set without knowing of each other; usually one."""

    KIND: ClassVar[str] = "mvregister"

    def __init__(self, *value: Any) -> None:
        super().__init__()
        for one in value[:1]:
            self.set(one)
        if len(value) > 1:
            raise TypeError(f"MVRegister takes one value, not {len(value)}")

    @property
    def values(self) -> list[Any]:
        """The siblings, in an order that is the same everywhere."""
        return [own_copy(item) for _, item in sorted(self._dots.items(), key=lambda row: row[0])]

    def set(self, value: Any) -> None:
        """Set it in place of all siblings that are seen here."""
        item = own_copy(value)
        self._record(item, list(self._dots))

    def _shown(self) -> str:
        return ", ".join(map(repr, self.values))
