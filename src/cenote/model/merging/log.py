"""A log that several append to: nothing is lost, and the order is the same for everybody.

Items stand in the order of the hybrid clocks of their appends, then of their actors and numbers. With a limit the
newest so many are kept: an item goes only when that many newer ones are there, so the outcome does not depend on
who merged when.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

from cenote.model.merging.base import Merging, own_copy
from cenote.model.merging.registers import Stamped


class AppendLog(Stamped):
    """Items in a stable order."""

    KIND: ClassVar[str] = "appendlog"

    def __init__(self, items: Any = (), *, limit: int | None = None) -> None:
        super().__init__(limit=limit)
        for item in items:
            self.append(item)

    def append(self, item: Any, *, wall_ms: int | None = None) -> None:
        """Put it behind all that are seen here; `wall_ms`: the wall's time in ms since 1970, asked if not given."""
        self._record_stamped(item, [], wall_ms)
        self._trim()

    def __iter__(self) -> Iterator[Any]:
        return iter([own_copy(item) for (_, item), _ in self._kept()])

    def __len__(self) -> int:
        return len(self._dots) if self.limit is None else min(len(self._dots), self.limit)

    def __getitem__(self, place: int) -> Any:
        return own_copy(self._kept()[place][0][1])

    def _kept(self) -> list[tuple[Any, Any]]:
        ordered = self._in_order()
        return ordered if self.limit is None else ordered[-self.limit :]

    def _trim(self) -> None:
        if self.limit is not None and len(self._dots) > self.limit:
            self._forget([dot for _, dot in self._in_order()[: -self.limit]])

    def _fold(self, actor: str) -> None:
        self._trim()

    def _graft(self, source: Merging) -> None:
        super()._graft(source)
        self._trim()

    def _shown(self) -> str:
        return repr(list(self))
