"""Reading checkpoints: a base and the deltas above it, folded from the newest to the oldest.

The newest record of a key counts, so whoever goes backwards meets it first; what stays in memory are the names of the
keys that were met, and one part. Each part is checked before anything of it is shown. A chain that changes meanwhile,
because a delta became a base, holds the same: its new parts are read on, without the keys that were met.
"""

from collections.abc import AsyncIterator, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from cenote import limits
from cenote.errors import ConsistencyError, NotFoundError
from cenote.model import key as keys
from cenote.model.entry import UnknownFormat
from cenote.model.kept import FORMAT, Kept, key_text, unpacked
from cenote.sql.checkpoints import CheckpointRow, CheckpointTable, NewCheckpoint

DIGEST_BYTES: Final = 16
_LOOKS_MAX: Final = 5


def part_digest(part: bytes) -> bytes:
    """What is kept of each part beside it."""
    return blake2b(part, digest_size=DIGEST_BYTES).digest()


def digest_of(row: NewCheckpoint | CheckpointRow) -> bytes:
    """Of a checkpoint: what it is, whose and when, what it stands on, and its parts."""
    words = (
        row.id.bytes, row.agent_id.bytes, row.seq, row.parent_id and row.parent_id.bytes, row.epoch, row.revision,
        row.cut_us, row.changed, row.removed, row.size, row.format, row.part_digests,
    )  # fmt: skip
    return blake2b(msgspec.msgpack.encode(words), digest_size=32).digest()


class _Part(NamedTuple):
    data_id: UUID
    number: int
    digest: bytes
    size: int


class Fold:
    """One reading of one checkpoint.

    containing: only this key; what the others are is not even fetched.
    """

    def __init__(
        self, table: CheckpointTable, agent: keys.AgentRef, seq: int, *, containing: str | None = None
    ) -> None:
        self._table = table
        self._agent = agent
        self._seq = seq
        self._only = containing
        self._text = None if containing is None else key_text(containing)
        self._met: set[str] = set()
        self._cut_ms = 0

    async def pages(self) -> AsyncIterator[list[Kept]]:
        """What was live at the cut, each key once, a part at a time.

        Raises:
            NotFoundError: there is no such checkpoint.
            UnknownFormat: a newer cenote made it, or what it stands on.
            ConsistencyError: it is damaged, or a base is gone. Nothing of a damaged part was shown.
        """
        for _ in range(_LOOKS_MAX):
            chain = await self._chain()
            moved = False
            for some in _portions(_parts(chain)):
                found = await self._table.parts([(part.data_id, part.number) for part in some], self._text)
                for part in some:
                    if (part.data_id, part.number) not in found:
                        moved = True
                        break
                    data = found[part.data_id, part.number]
                    if data is not None and (page := self._page(part, data)):
                        yield page
                if moved:
                    break
            if not moved:
                return
        raise ConsistencyError(f"I9: parts of checkpoint {self._seq} are missing", hint="restore an older one")

    async def _chain(self) -> list[CheckpointRow]:
        chain = await self._table.chain(self._agent.id, self._seq)
        if not chain:
            raise NotFoundError("there is no such checkpoint of this agent")
        for row in chain:
            demand_readable(row)
        if chain[-1].parent_id is not None:
            raise ConsistencyError(f"I9: checkpoint {self._seq} stands on one that is gone")
        self._cut_ms = chain[0].cut_us // 1000
        return chain

    def _page(self, part: _Part, data: bytes) -> list[Kept]:
        demand_intact(data, part.digest, f"part {part.number} of checkpoint {self._seq} of {self._agent.text!r}")
        met, page = self._met, []
        for kept in reversed(unpacked(data)):
            if kept.key not in met:
                met.add(kept.key)
                if kept.live(self._cut_ms) and (self._only is None or kept.key == self._only):
                    page.append(kept)
        return page


def demand_intact(part: bytes, digest: bytes, what: str) -> None:
    """The bytes are those that were kept. ConsistencyError names the place."""
    if part_digest(part) != digest:
        raise ConsistencyError(f"I9: {what} is damaged", hint="its digest does not match; use another checkpoint")


def demand_readable(row: NewCheckpoint | CheckpointRow) -> None:
    """Its format is one of ours, and its row is what it was."""
    if row.format > FORMAT:
        raise UnknownFormat(
            f"checkpoint {row.seq} is of format {row.format}; this cenote reads formats up to {FORMAT}",
            hint="upgrade this process: pip install --upgrade cenote",
        )
    if digest_of(row) != row.digest:
        raise ConsistencyError(
            f"I9: checkpoint {row.seq} is damaged", hint="its digest does not match; use another one"
        )


def _parts(chain: Sequence[CheckpointRow]) -> list[_Part]:
    """All parts, the newest first."""
    parts = []
    for row in chain:
        count = len(row.part_digests) // DIGEST_BYTES
        for number in reversed(range(count)):
            begin = number * DIGEST_BYTES
            digest = row.part_digests[begin : begin + DIGEST_BYTES]
            parts.append(_Part(row.data_id, number, digest, row.size // count))
    return parts


def _portions(parts: Sequence[_Part]) -> list[list[_Part]]:
    """Those that one question may bring."""
    portions: list[list[_Part]] = []
    room = 0
    for part in parts:
        if not portions or part.size > room:
            portions.append([])
            room = limits.CHECKPOINT_READ_BYTES
        portions[-1].append(part)
        room -= part.size
    return portions
