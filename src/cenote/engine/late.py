"""Whose writes were late: the agents that a repair looks at first (specification 7)."""

from collections.abc import Iterable
from typing import Final
from uuid import UUID

from cenote.sql.rows import Row

_MOST: Final = 100


class Late:
    """The agents of late writes, up to a hundred: in a fault nearly all are late, and comparing everybody then would
    make it worse. Who is late again is noted again."""

    def __init__(self) -> None:
        self._agents: set[UUID] = set()

    def note(self, rows: Iterable[Row]) -> None:
        """A batch had late writes among these."""
        for row in rows:
            if len(self._agents) >= _MOST:
                return
            self._agents.add(row.agent_id)

    def take(self) -> list[UUID]:
        """Those noted since the last call."""
        taken, self._agents = self._agents, set()
        return list(taken)
