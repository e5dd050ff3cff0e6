"""What a checkpoint keeps of a key, and the bytes in which PostgreSQL keeps many of them: a part.

A part is JSON in UTF-8, so that SQL can read it, too (the view `agents.checkpoint_state`):

    [[key, epoch, revision, written_us, expires_ms, codec, body], …]

The key is spelt as in `agents.state`; codec and body are null for a removed key. A body that is JSON stands there as it
is, byte for byte; any other is base64 in a string, and its codec begins with "=". Where a key stands twice, the later
one counts.
"""

import base64
from collections.abc import Iterable
from typing import Final

import msgspec

from cenote import limits
from cenote.errors import CodecError
from cenote.model import key as keys
from cenote.model.entry import Version

FORMAT: Final = 1
"""The newest format of checkpoints that this code reads, and the one it writes."""

_NOTHING: Final = msgspec.Raw(b"null")
_OTHER: Final = "="
_is_json: Final = msgspec.json.Decoder(msgspec.Raw).decode


class Kept(msgspec.Struct, frozen=True, gc=False):
    """One key as it was at a cut. `body` are the very bytes that its tier held; a removed key has none."""

    key: str
    codec: str
    body: bytes
    version: Version
    written_us: int
    expires_ms: int | None
    deleted: bool = False

    def live(self, at_ms: int) -> bool:
        """Whether a read at this server time would have found it."""
        return not self.deleted and (self.expires_ms is None or self.expires_ms > at_ms)


class _Record(msgspec.Struct, frozen=True, gc=False, array_like=True):
    key: str
    epoch: int
    revision: int
    written_us: int
    expires_ms: int | None
    codec: str | None
    body: msgspec.Raw


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(list[_Record]).decode


def key_text(key: str) -> bytes:
    """How a part spells this key, quotes included."""
    return _encode(keys.sql_key(key))


def packed(kept: Iterable[Kept]) -> list[bytes]:
    """The parts that hold these."""
    packer = Packer()
    for one in kept:
        packer.add(one)
    packer.close()
    return packer.parts


class Packer:
    """Makes parts of `limits.CHECKPOINT_PART_BYTES`, which one record may exceed; `parts` may be taken out."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._records: list[_Record] = []
        self._size = 0

    def add(self, kept: Kept) -> None:
        """Another record, the last one so far."""
        self.add_row(keys.sql_key(kept.key), kept)

    def add_row(self, row_key: str, kept: Kept) -> None:
        """The same for who has the key in SQL's spelling."""
        codec, body = (None, _NOTHING) if kept.deleted else _body(kept)
        epoch, revision = kept.version
        self._records.append(_Record(row_key, epoch, revision, kept.written_us, kept.expires_ms, codec, body))
        self._size += len(kept.body) + len(row_key)
        if self._size >= limits.CHECKPOINT_PART_BYTES:
            self.close()

    def close(self) -> None:
        """What was added so far ends a part."""
        if self._records:
            self.parts.append(_encode(self._records))
            self._records, self._size = [], 0


def unpacked(part: bytes) -> list[Kept]:
    """The records of a part; CodecError when it is none of this format."""
    try:
        found = []
        for one in _decode(part):
            codec, body = one.codec, bytes(one.body)
            if codec is None or codec[:1] == _OTHER:
                codec, body = _plain(codec, body)
            key = keys.from_sql_key(one.key) if "\x1a" in one.key else one.key
            version = Version(one.epoch, one.revision)
            found.append(Kept(key, codec, body, version, one.written_us, one.expires_ms, one.codec is None))
        return found
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise CodecError(f"a part of a checkpoint cannot be read: {error}") from error


def _body(kept: Kept) -> tuple[str, msgspec.Raw]:
    body = kept.body
    if kept.codec in ("j", "r", "b"):
        try:
            if bytes(_is_json(body)) == body and (body.isascii() or body.decode()):
                return kept.codec, msgspec.Raw(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass  # not what we wrote: kept as it is all the same
    return _OTHER + kept.codec, msgspec.Raw(b'"' + base64.b64encode(body) + b'"')


def _plain(codec: str | None, body: bytes) -> tuple[str, bytes]:
    if codec is None:
        return "j", b""
    return codec[1:], base64.b64decode(body[1:-1], validate=True)
