"""What kind of value stored bytes are, by their first few: whoever is about to write over them asks this each time.

An object with one member whose name begins with `$` is always a tag (`tags.py`), so the beginning is proof.
"""

import zlib
from typing import Final

from cenote.errors import CodecError
from cenote.model.merging.document import KIND as DOCUMENT
from cenote.model.merging.wire import KINDS

CLOCKED: Final = "clocked"
_TAGGED: Final = b'{"$'
_HEADS: Final = {b'{"$%s"' % kind.encode(): kind for kind in (*KINDS, DOCUMENT, CLOCKED)}
_HEAD_BYTES_MAX: Final = max(map(len, _HEADS))
_PACKED_BYTES: Final = 1_024  # enough for the first bytes: deflate's tables take 300 at most


def kind_of(codec: str, body: bytes) -> str | None:
    """The kind of a value with an order of its own: one of KINDS, "loro" or "clocked"; None for a plain value.

    Nothing is decoded; of a compressed body the first bytes are unpacked. CodecError where the bytes are not there:
    a large value's reference must be resolved first.
    """
    if codec[-1:] == "z":
        try:
            body = zlib.decompressobj().decompress(body[:_PACKED_BYTES], _HEAD_BYTES_MAX)
        except zlib.error as error:
            raise CodecError(f"stored bytes of codec {codec[:20]!r} cannot be decoded: {error}") from error
    elif codec != "j" and codec != "r":
        raise CodecError(f"a body of codec {codec[:20]!r} does not say what it is")
    if not body.startswith(_TAGGED):
        return None
    return _HEADS.get(body[: body.find(b'"', len(_TAGGED), _HEAD_BYTES_MAX) + 1])


def is_merging(codec: str, body: bytes) -> bool:
    """Whether a plain put must not silently replace this: it merges, or carries a clock. As `kind_of`."""
    return kind_of(codec, body) is not None
