"""Sets: GSet only grows; in an ORSet an addition wins over a concurrent removal, and removals leave no tombstones.

Bieniusa and others: "An optimized conflict-free replicated set" (2012). Elements are told apart as they are stored:
1, 1.0 and True are three. A bounded set refuses an addition beyond its limit; a merge is never refused.
"""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from cenote.errors import RejectedError
from cenote.model.canonical import element_key
from cenote.model.merging.base import Merging
from cenote.model.merging.context import Context, Dot


class GSet(Merging):
    """A set that only grows."""

    KIND: ClassVar[str] = "gset"

    def __init__(self, elements: Iterable[Any] = (), *, limit: int | None = None) -> None:
        super().__init__(limit=limit)
        self._index: dict[str | bytes, list[Dot]] | None = {}
        for element in elements:
            self.add(element)

    def add(self, element: Any) -> None:
        """Add it; RejectedError for what cannot be an element, and for a new one when the set is full."""
        key = element_key(element)
        index = self._indexed()
        known = index.get(key)
        if known is None and self.limit is not None and len(index) >= self.limit:
            raise RejectedError(f"{type(self).__name__}: it holds {len(index)} elements; its limit is {self.limit}")
        if known is None or self._renews():
            index[key] = [self._record(element, known or [])]

    def _renews(self) -> bool:
        """Whether adding an element again matters: where somebody may have removed it meanwhile."""
        return self._touch is not None

    def __contains__(self, element: object) -> bool:
        return element_key(element) in self._indexed()

    def __iter__(self) -> Iterator[Any]:
        return iter([self._dots[dots[0]] for dots in self._indexed().values()])

    def __len__(self) -> int:
        return len(self._indexed())

    def _indexed(self) -> dict[str | bytes, list[Dot]]:
        if self._index is None:
            self._index = {}
            for dot, element in self._dots.items():
                self._index.setdefault(element_key(element), []).append(dot)
        return self._index

    def _absorb(self, left: Any, left_seen: Context, right: Any, right_seen: Context) -> None:
        super()._absorb(left, left_seen, right, right_seen)
        self._index = None

    def _become(self, other: Any) -> None:
        super()._become(other)
        self._index = None

    def _rename(self, renames: dict[Dot, Dot]) -> None:
        super()._rename(renames)
        self._index = None

    def _graft(self, source: Merging) -> None:
        assert isinstance(source, GSet)
        index = self._indexed()
        for key, dots in source._indexed().items():  # all of them: a merged set may hold more than its limit
            index[key] = [self._record(source._dots[dots[0]], [])]

    def _rows(self) -> list[tuple[Any, list[Dot]]]:
        rows = [(self._dots[dots[0]], sorted(dots)) for dots in self._indexed().values()]
        return sorted(rows, key=lambda row: row[1])

    def _shown(self) -> str:
        return f"{{{', '.join(map(repr, self))}}}" if len(self) else ""


class ORSet(GSet):
    """A set in which an addition wins over a concurrent removal of the same element."""

    KIND: ClassVar[str] = "orset"

    def discard(self, element: Any) -> None:
        """Remove it if it is there: what was added and seen here, and nothing that others add meanwhile."""
        dots = self._indexed().pop(element_key(element), None)
        if dots is not None:
            self._forget(dots)
            self._changed()

    def remove(self, element: Any) -> None:
        """Remove it; KeyError when it is not there."""
        if element not in self:
            raise KeyError(element)
        self.discard(element)

    def _renews(self) -> bool:
        return True
