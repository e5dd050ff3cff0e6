"""A checkpoint that is being made."""

import logging
from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from cenote import limits
from cenote.engine.cut import BEFORE_ALL, Place, Share
from cenote.engine.fold import digest_of, part_digest
from cenote.errors import CenoteError, RejectedError
from cenote.model import key as keys
from cenote.model.entry import Version
from cenote.model.kept import FORMAT
from cenote.model.uuid7 import uuid7
from cenote.sql.checkpoints import CheckpointTable, NewCheckpoint, Parent
from cenote.sql.jsonb import encoded

log = logging.getLogger("cenote.engine")


class Wish(NamedTuple):
    """What whoever wants a checkpoint says about it."""

    label: str | None = None
    metadata: str | None = None
    raw: bytes | None = None
    keep: bool = False


NO_WISH: Final = Wish()


def wish(label: str | None, metadata: object, *, keep: bool) -> Wish:
    """The wish itself; RejectedError names what cannot be."""
    if label is not None and (type(label) is not str or not 0 < len(label) <= limits.CHECKPOINT_LABEL_CHARS_MAX):
        raise RejectedError(f"label: 1 to {limits.CHECKPOINT_LABEL_CHARS_MAX} characters are needed")
    text = raw = None
    if metadata is not None:
        text, raw = encoded(metadata, what="metadata", bytes_max=limits.CHECKPOINT_METADATA_BYTES_MAX)
    return Wish(None if label is None else keys.sql_key(label), text, raw, keep)


class Draft:
    """One agent's checkpoint while its cut is made: its parts leave memory when they become many.

    parent: upon which it stands, None for a base. seq: its number. since_s: see `Share`.
    """

    def __init__(
        self, table: CheckpointTable, agent: keys.AgentRef, seq: int, parent: Parent | None, since_s: float | None
    ) -> None:
        self.agent = agent
        self.seq = seq
        self.parent = parent
        self.id = uuid7()  # of its parts
        self.first = 0
        self._table = table
        self._digests: list[bytes] = []
        self._bytes = 0
        after = BEFORE_ALL if parent is None else Version(parent.epoch, parent.revision)
        self.share = Share(agent, after, since_s, self.spill)

    async def spill(self) -> None:
        """Put finished parts where the checkpoint will find them."""
        packer = self.share.packer
        if sum(map(len, packer.parts)) < limits.CHECKPOINT_SPILL_BYTES:
            return
        parts, packer.parts = packer.parts, []
        self._count(parts)
        await self._table.put_parts(self.id, self.first, parts)
        self.first += len(parts)

    def _count(self, parts: Sequence[bytes]) -> None:
        self._digests += map(part_digest, parts)
        self._bytes += sum(map(len, parts))

    def finished(self, place: Place, of: Wish, group: UUID | None, checkpoint_id: UUID) -> NewCheckpoint:
        """The row, and in `share.packer.parts` what is not there yet."""
        share, parent = self.share, self.parent
        share.packer.close()
        self._count(share.packer.parts)
        size = self._bytes
        row = NewCheckpoint(
            checkpoint_id, self.agent.id, self.seq, parent and parent.id, parent.depth + 1 if parent else 0,
            parent.chain_bytes + size if parent else 0, parent.base_bytes if parent else size, *place.version,
            place.incarnation, place.at_ms * 1000, of.label, of.metadata, of.raw, of.keep, group, share.changed,
            share.removed if parent else 0, size, self.id, FORMAT, b"".join(self._digests), b"",
        )  # fmt: skip
        return row._replace(digest=digest_of(row))

    async def forget(self) -> None:
        """Nobody will come for the parts."""
        if self.first:
            try:
                await self._table.drop_parts(self.id)
            except CenoteError as error:
                log.debug("parts of a given-up checkpoint stay for a day: %s", error)
