"""Dead letters: writes that PostgreSQL refused, and what becomes of them (flow rule 14)."""

from dataclasses import dataclass
from datetime import datetime

from cenote.errors import CodecError, NotFoundError, RejectedError
from cenote.model import key as keys
from cenote.model import value
from cenote.model.entry import Version, from_us
from cenote.model.page import page_limit
from cenote.sql.state import StateTable


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A write that PostgreSQL refused. Its row serves the exact bytes meanwhile, so that it reads as it was written.

    Attributes:
        id: by which it is retried or discarded.
        agent, key, version: of the write.
        size: bytes of the value.
        reason: why it was refused; never quotes the value.
        created_at: PostgreSQL's time.
    """

    id: int
    agent: str
    key: str
    version: Version
    size: int
    reason: str
    created_at: datetime


class DeadLetters:
    """What is to be decided about; `store.dead_letters`."""

    def __init__(self, table: StateTable) -> None:
        self._table = table

    async def list(self, after: int = 0, limit: int = 100) -> list[DeadLetter]:
        """Those nobody has decided about, the oldest first.

        Args:
            after: the last id of the page before; 0 begins.
            limit: at most so many.

        Raises:
            RejectedError: the limit is none.
            UnavailableError: PostgreSQL cannot be reached.
        """
        letters = await self._table.dead_letters(after, page_limit(limit))
        names = await self._table.names(list({one.agent_id for one in letters})) if letters else {}
        return [
            DeadLetter(
                id=one.id, agent=keys.agent_named(one.agent_id, names.get(one.agent_id)).text,
                key=keys.from_sql_key(one.key), version=Version(one.epoch, one.version), size=len(one.raw),
                reason=one.reason, created_at=from_us(one.created_us),
            )
            for one in letters
        ]  # fmt: skip

    async def retry(self, letter_id: int) -> bool:
        """Put a write into its row after all, under its own version; for when the reason is gone.

        Returns:
            False when a newer write had come meanwhile; the letter is off the list either way.

        Raises:
            NotFoundError: no such letter waits.
            CodecError: refused again; nothing changed.
            UnavailableError: PostgreSQL cannot be reached.
        """
        letter = await self._table.dead_letter(letter_id)
        if letter is None:
            raise _unknown(letter_id)
        text, raw = value.json_text(*value.from_sql(None, letter.raw))
        try:
            return await self._table.retry_dead_letter(letter_id, text, raw)
        except RejectedError as error:
            raise CodecError(f"refused again: {error}", hint=f"cenote dead-letters discard {letter_id}") from error

    async def discard(self, letter_id: int) -> None:
        """Take a letter off the list; its row goes on serving the exact bytes.

        Raises:
            NotFoundError: no such letter waits.
            UnavailableError: PostgreSQL cannot be reached.
        """
        if not await self._table.discard_dead_letter(letter_id):
            raise _unknown(letter_id)


def _unknown(letter_id: int) -> NotFoundError:
    return NotFoundError(f"no dead letter {letter_id} waits", hint="see: cenote dead-letters list")
