"""`agents.dead_letters`: writes that SQL refused (flow rule 14).

Quarantine advances the key's row, so that no predecessor comes back as the newest: the row holds the exact
bytes in `raw`, reads serve them, and the letter says why. A letter is written only when its row is, so
redelivery makes no second one.
"""

from collections.abc import Sequence
from uuid import UUID

from cenote.sql.pool import Database
from cenote.sql.rows import DeadLetter, Flushed, GcFloor, Guard, Heartbeat, Row, flushed


class DeadLetterTable:
    """Quarantine and what becomes of it."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def flush_one_quarantined(
        self,
        row: Row,
        guard: Guard,
        heartbeat: Heartbeat,
        *,
        reason: str,
        envelope: str,
        looked: GcFloor | None = None,
    ) -> Flushed | None:
        """Quarantine one write: its row with `value` NULL and `raw` = the exact bytes, and a dead letter,
        at once.

        Args:
            row: `raw` is set; `value`, `deleted` and `quarantined` are ignored.
            guard, heartbeat, looked: as for a flush.
            reason: why SQL refused it; must not quote the value.
            envelope: the header line it was written with.

        Returns:
            None when the guard did not hold; `applied` is 0 when SQL holds this version or a newer one.

        Raises:
            DataRefused: not even the key can be stored: leave the message unacknowledged.
        """
        assert row.raw is not None, "a quarantined row serves its raw bytes"
        found = await self.db.fetchrow(
            self.db.queries["quarantine"],
            guard.epoch,
            guard.incarnation,
            row.agent_id,
            row.key,
            row.raw,
            row.version,
            row.kv_time_us,
            row.epoch,
            *heartbeat,
            row.expires_us,
            reason,
            envelope,
            looked and looked.round,
        )
        return flushed(found)

    async def put_aside(self, pairs: Sequence[tuple[UUID, str]], reason: str) -> int:
        """Keep what these rows hold as dead letters, because other values are about to replace them; how many letters
        were written, for one that is there already makes no second."""
        told = await self.db.execute(
            self.db.queries["put_aside"], [agent_id for agent_id, _ in pairs], [key for _, key in pairs], reason
        )
        return int(told.rpartition(" ")[2])

    async def dead_letters(self, after_id: int, limit: int) -> list[DeadLetter]:
        """Unresolved letters, oldest first; `after_id` is the last id of the page before, 0 begins."""
        return [DeadLetter(*row) for row in await self.db.fetch(self.db.queries["dead_letters"], after_id, limit)]

    async def count_dead_letters(self, most: int) -> int:
        """How many nobody has decided about yet, counted up to `most`."""
        return int(await self.db.fetchval(self.db.queries["count_dead_letters"], most))

    async def dead_letter(self, letter_id: int) -> DeadLetter | None:
        """One unresolved letter."""
        row = await self.db.fetchrow(self.db.queries["dead_letter"], letter_id)
        return None if row is None else DeadLetter(*row)

    async def retry_dead_letter(self, letter_id: int, value: str | None, raw: bytes | None) -> bool:
        """Put the write into its row after all, under its original version, and resolve the letter.

        Args:
            letter_id: an unresolved letter.
            value, raw: the row's columns, as the codec makes them now.

        Returns:
            Whether the row was still the quarantined one; if a newer write came, the letter is resolved all
            the same.

        Raises:
            DataRefused: refused again; nothing changed.
        """
        return bool(await self.db.fetchval(self.db.queries["retry_dead_letter"], letter_id, value, raw))

    async def discard_dead_letter(self, letter_id: int) -> bool:
        """Resolve the letter and leave the row as it is: it goes on serving the exact bytes. False: no such
        letter."""
        return await self.db.execute(self.db.queries["discard_dead_letter"], letter_id) == "UPDATE 1"
