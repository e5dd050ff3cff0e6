"""What checkpoints say about single keys: the value at one, the difference of two, the history of one key."""

import zlib
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from typing import Any
from uuid import UUID

from cenote.engine.blobs import Blobs, same_bytes
from cenote.engine.checkpoint import Checkpoint, Checkpoints
from cenote.engine.conflict_log import Conflict
from cenote.engine.entries import BLOB
from cenote.engine.fold import demand_intact
from cenote.errors import CenoteError
from cenote.model import key as keys
from cenote.model import value as values
from cenote.model.canonical import canonical
from cenote.model.entry import Version, from_us
from cenote.model.kept import Kept, key_text, unpacked

_PAGE = 64


@dataclass(frozen=True, slots=True)
class Difference:
    """What became of the keys from one checkpoint to another; each in the order of their names.

    Attributes:
        added, removed: keys that only the second, or only the first one has.
        changed: keys with another value.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True, slots=True)
class PastVersion:
    """One version of a key that a checkpoint has kept.

    Attributes:
        value: decoded; None for a delete.
        version, written_at: of the write.
        deleted: whether it was a delete.
        checkpoint, seq: the first checkpoint that still holds it.
    """

    value: Any
    version: Version
    written_at: datetime
    deleted: bool
    checkpoint: UUID
    seq: int


@dataclass(frozen=True, slots=True)
class Undecoded:
    """In place of a value that was not read, for its size; two are equal where the values are."""

    size: int
    mark: bytes = field(repr=False)

    def __repr__(self) -> str:
        return f"a value of {self.size:,} bytes as it is kept"


@dataclass(frozen=True, slots=True)
class History:
    """What is still known of a key's past.

    Attributes:
        versions: those that checkpoints have kept, the oldest first.
        conflicts: what the conflict log says of it, the newest first.
        complete: always False: a write that was overwritten before a checkpoint was cut is kept nowhere.
    """

    versions: tuple[PastVersion, ...]
    conflicts: tuple[Conflict, ...]
    complete: bool = False


class Past:
    """Asks the checkpoints of one agent."""

    def __init__(self, checkpoints: Checkpoints, blobs: Blobs, agent: keys.AgentRef) -> None:
        self._checkpoints = checkpoints
        self._blobs = blobs
        self._agent = agent

    async def kept(self, at: Checkpoint | UUID | str, key: str) -> Kept | None:
        """What a checkpoint holds of one key."""
        mark = await self._checkpoints.find(self._agent, at)
        async for page in self._checkpoints.fold(self._agent, mark.seq, containing=key):
            for kept in page:
                return await self.whole(kept)
        return None

    async def whole(self, kept: Kept) -> Kept:
        """With its bytes, where only a reference is kept."""
        return await self._blobs.resolve(kept) if kept.codec == BLOB else kept

    async def difference(self, a: Checkpoint | UUID | str, b: Checkpoint | UUID | str) -> Difference:
        """From `a` to `b`. Memory: names and digests of the keys of `a`. Versions would not do: those of an imported
        checkpoint are of another stream."""
        first, second = await self._checkpoints.find(self._agent, a), await self._checkpoints.find(self._agent, b)
        before: dict[str, bytes] = {}
        async for page in self._checkpoints.fold(self._agent, first.seq):
            before |= {kept.key: _mark(kept) for kept in page}
        added: list[str] = []
        suspects: dict[str, bytes] = {}
        async for page in self._checkpoints.fold(self._agent, second.seq):
            for kept in page:
                known = before.pop(kept.key, None)
                if known is None:
                    added.append(kept.key)
                elif known != _mark(kept):
                    suspects[kept.key] = _content(kept)
        return Difference(
            tuple(sorted(added)), tuple(sorted(before)), tuple(sorted(await self._changed(first, suspects)))
        )

    async def _changed(self, first: Checkpoint, suspects: dict[str, bytes]) -> list[str]:
        """Of keys that were written in between those whose value is another one."""
        if not suspects:
            return []
        changed = []
        async for page in self._checkpoints.fold(self._agent, first.seq):
            changed += [kept.key for kept in page if kept.key in suspects and _content(kept) != suspects[kept.key]]
        return changed

    async def versions(self, key: str, bytes_max: int | None = None) -> list[PastVersion]:
        """All versions of a key that the agent's checkpoints hold, the oldest first. `bytes_max`: a larger value is
        `Undecoded`."""
        table, text, place = self._checkpoints.table, key_text(key), (0, -1)
        found: dict[Version, PastVersion] = {}
        while rows := await table.mentions(self._agent.id, text, place, _PAGE):
            for row in rows:
                demand_intact(row.data, row.digest, f"part {row.part} of checkpoint {row.seq}")
                for kept in unpacked(row.data):
                    if kept.key == key and kept.version not in found:
                        found[kept.version] = await self._version(kept, row.checkpoint_id, row.seq, bytes_max)
            place = rows[-1].seq, rows[-1].part
        return [found[version] for version in sorted(found)]

    async def _version(self, kept: Kept, checkpoint_id: UUID, seq: int, bytes_max: int | None) -> PastVersion:
        value: Any = None
        if not kept.deleted:
            large = bytes_max is not None and _larger(kept, bytes_max)
            value = Undecoded(len(kept.body), _mark(kept)) if large else await self._decoded(kept)
        return PastVersion(value, kept.version, from_us(kept.written_us), kept.deleted, checkpoint_id, seq)

    async def _decoded(self, kept: Kept) -> Any:
        whole = await self.whole(kept)
        return values.decode(whole.codec, whole.body)


def _larger(kept: Kept, bytes_max: int) -> bool:
    """Whether it takes more bytes to be read; of a compressed one no more than so many are made."""
    if kept.codec == BLOB or len(kept.body) > bytes_max:
        return True
    if not kept.codec.endswith("z"):
        return False
    try:
        return len(zlib.decompressobj().decompress(kept.body, bytes_max + 1)) > bytes_max
    except zlib.error:
        return False  # whoever decodes it says so


def _mark(kept: Kept) -> bytes:
    return blake2b(kept.codec.encode() + b";" + kept.body, digest_size=16).digest()


def _content(kept: Kept) -> bytes:
    """The same for values that are the same: a body that was in SQL is spelt otherwise."""
    if kept.codec == BLOB:
        return same_bytes(kept.body)
    try:
        return canonical(values.decode(kept.codec, kept.body))
    except CenoteError:
        return kept.body  # nobody can read it: then its bytes are its value
