"""`agents.repairs`, and what a repair asks of the state."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from cenote.sql.pool import Database
from cenote.sql.rows import Guard, Row


class Compared(NamedTuple):
    """What SQL holds of an entry; `place` is the entry's among those that were asked for."""

    place: int
    epoch: int
    version: int
    quarantined: bool
    same: bool


class Begun(NamedTuple):
    """A repair at its beginning, or as it was left, and whose it is now. `found`, `mended`, `samples` and `open` are
    JSON."""

    repair_id: UUID
    holder: UUID
    after: int
    scanned: int
    found: str
    mended: str
    samples: str
    open: str


class Progress(NamedTuple):
    """How far a repair has come; texts are JSON."""

    after: int
    scanned: int
    found: str
    mended: str
    samples: str
    open: str
    ended: bool


class Reference(NamedTuple):
    """A row whose value is a large one, kept beside it."""

    agent_id: UUID
    key: str
    epoch: int
    version: int
    raw: bytes


class RepairTable:
    """What the engine asks of SQL about repairs."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def compare(self, rows: Sequence[Row]) -> list[Compared]:
        """Those of these entries of which SQL has a row."""
        columns = [[getattr(row, name) for row in rows] for name in ("agent_id", "key", "value", "raw", "deleted")]
        columns.append([row.expires_us for row in rows])
        found = await self._db.fetch(self._db.queries["repair_compare"], *columns)
        return [Compared(row[0] - 1, *row[1:]) for row in found]

    async def rewrite(self, row: Row, guard: Guard) -> bool:
        """Give a row the content of the write whose version it has; false when it is another one by now."""
        place = (row.agent_id, row.key, row.epoch, row.version, row.value, row.raw, row.deleted, row.expires_us)
        return bool(await self._db.fetchval(self._db.queries["repair_rewrite"], *guard, *place))

    async def blobs(self, ids: Sequence[UUID]) -> set[UUID]:
        """Those of these large values that are there."""
        return {row[0] for row in await self._db.fetch(self._db.queries["repair_blobs"], list(ids))}

    async def references(self, after: tuple[UUID, str], limit: int) -> list[Reference]:
        """The next rows that refer to a large value."""
        return [Reference(*row) for row in await self._db.fetch(self._db.queries["repair_references"], *after, limit)]

    async def begin(
        self, run_id: UUID, reason: str, dry_run: bool, agents: list[str] | None, guard: Guard, silent_s: float
    ) -> Begun:
        """Begin a repair, or go on with one like it that somebody left; it is held under `run_id` either way."""
        row = await self._db.fetchrow(
            self._db.queries["repair_begin"], run_id, reason, dry_run, agents, *guard, silent_s
        )
        assert row is not None
        return Begun(*row)

    async def progress(self, repair_id: UUID, holder: UUID, figures: Progress) -> bool:
        """How far it has come; False: it is another's by now."""
        told = await self._db.execute(self._db.queries["repair_progress"], repair_id, holder, *figures)
        return told == "UPDATE 1"

    async def renew(self, repair_id: UUID, holder: UUID) -> None:
        """It goes on."""
        await self._db.execute(self._db.queries["repair_renew"], repair_id, holder)

    async def newest(self, limit: int) -> list[tuple[Begun, str, bool, datetime, datetime | None]]:
        """The newest ones: as they stand, reason, dry run, begun and ended at."""
        rows = await self._db.fetch(self._db.queries["repair_list"], limit)
        return [(Begun(*row[:8]), *row[8:]) for row in rows]

    async def forget(self, age_s: float, telling_age_s: float) -> None:
        """Remove old ones; those that found something stay for longer."""
        await self._db.execute(self._db.queries["repair_forget"], age_s, telling_age_s)
