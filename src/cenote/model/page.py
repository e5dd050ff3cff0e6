"""Pages: a part of a long list, and where it goes on. A cursor is opaque, and worth nothing to whoever made it up."""

import base64
import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

import msgspec

from cenote.errors import NotFoundError, RejectedError

T = TypeVar("T")

_SEAL_BYTES: Final = 16
_CURSOR_CHARS_MAX: Final = 4_000
PAGE_COUNT_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some of the items.

    Attributes:
        items: in the order of the list.
        next: the cursor of the page after this one; None: there is none.
    """

    items: list[T]
    next: str | None

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class Cursors:
    """Writes and reads the cursors of one kind of list in one store: keyset values (text, numbers, bool, None) under a
    seal (HMAC-SHA256, RFC 2104, cut to 16 bytes), so that nobody lists by a position that was not given to him."""

    def __init__(self, store_id: str, kind: str) -> None:
        self._key = sha256(UUID(store_id).bytes + kind.encode()).digest()

    def write(self, *values: object) -> str:
        """The cursor that `read` gives these back for."""
        body = msgspec.msgpack.encode(values)
        return base64.urlsafe_b64encode(self._seal(body) + body).decode("ascii").rstrip("=")

    def read(self, cursor: str) -> list[Any]:
        """The values. NotFoundError, always with the same words, for whatever `write` of this store did not make."""
        if type(cursor) is not str:
            raise RejectedError(f"cursor: a str is needed, not {type(cursor).__name__}")
        try:
            raw = base64.b64decode(cursor[:_CURSOR_CHARS_MAX] + "=" * (-len(cursor) % 4), b"-_", validate=True)
        except ValueError:
            raw = b""
        seal, body = raw[:_SEAL_BYTES], raw[_SEAL_BYTES:]
        if not hmac.compare_digest(seal, self._seal(body)):
            raise NotFoundError("there is no such page", hint="pass the .next of a page of the same list")
        values: list[Any] = msgspec.msgpack.decode(body)
        return values

    def _seal(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")[:_SEAL_BYTES]


def page_limit(limit: int) -> int:
    """`limit` itself. RejectedError unless it is 1 to `PAGE_COUNT_MAX`."""
    if type(limit) is not int or not 1 <= limit <= PAGE_COUNT_MAX:
        raise RejectedError(f"limit: 1 to {PAGE_COUNT_MAX} is needed, not {limit!r}")
    return limit
