"""How a value becomes text for whoever looks: cut to a length, and without what its name says is a secret."""

import re
import zlib
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from cenote import limits
from cenote.errors import CenoteError
from cenote.model import value as values
from cenote.model.entry import Stored, from_us
from cenote.model.merging.base import Merging
from cenote.model.merging.map import ORMap

CHARS_MAX: Final = 4_000
HIDDEN: Final = "•••"
_BODY_MAX: Final = 16_384
_UNPACKED_MAX: Final = 65_536
_ITEMS_MAX: Final = 200
_SECRET: Final = re.compile(
    r"passw|passphrase|pwd|secret|token|api[_-]?key|credential|private|authorization|bearer|cookie", re.IGNORECASE
)


def secret(name: object) -> bool:
    """Whether something of this name is not to be shown."""
    return isinstance(name, str) and _SECRET.search(name) is not None


def shown(key: str, value: Any) -> str:
    """A value as text of at most `CHARS_MAX` characters, made without a look at the rest of it."""
    if secret(key):
        return HIDDEN
    writer = _Writer()
    try:
        writer.write(value)
    except _FullError:
        return "".join(writer.parts)[:CHARS_MAX] + " …"
    return "".join(writer.parts)


def decoded(key: str, stored: Stored) -> str:
    """What a tier holds, as text. Whoever looks must not hold up the flush: what is large stays as it is."""
    if secret(key):
        return HIDDEN
    codec, body = stored.codec, stored.body
    if codec in ("jz", "rz") and len(body) <= _BODY_MAX:
        try:
            body = zlib.decompressobj().decompress(body, _UNPACKED_MAX + 1)
        except zlib.error as error:
            return f"unreadable: {error}"
        codec, most = codec[0], _UNPACKED_MAX
    else:
        most = _BODY_MAX
    if codec not in ("j", "r") or len(body) > most:
        return f"a value of {len(stored.body):,} bytes as it is kept"
    try:
        return shown(key, values.decode(codec, body))
    except CenoteError as error:
        return f"unreadable: {error}"


def content(value: Merging) -> Any:
    """What a value that merges holds, as plain data."""
    if isinstance(value, ORMap):
        return {name: value.get(name) for name in value.keys()}  # noqa: SIM118  # its own method, sorted
    for name in ("value", "values"):
        if hasattr(type(value), name):
            return getattr(value, name)
    return list(value)  # type: ignore[call-overload]  # the rest are sets and logs


def cut(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= CHARS_MAX else text[:CHARS_MAX] + " …"


def moment(us: int | None) -> str | None:
    """A time in µs as text, UTC."""
    return None if us is None else when(from_us(us))


def when(time: datetime | None) -> str | None:
    """A time as text, UTC."""
    return None if time is None else time.isoformat(" ", "seconds").removesuffix("+00:00")


class _FullError(Exception):
    """There is enough of it."""


class _Writer:
    """Collects the text of a value until there is enough."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._room = CHARS_MAX

    def write(self, value: Any, depth: int = 0) -> None:
        if isinstance(value, Merging):
            self._add(type(value).__name__ + " ")
            value = content(value)
        if isinstance(value, dict):
            self._pairs(value, depth)
        elif isinstance(value, list | tuple | set | frozenset):
            ends = "[]" if isinstance(value, list) else "()" if isinstance(value, tuple) else "{}"
            self._items(value, ends, depth)
        else:
            self._add(repr(value[:CHARS_MAX] if isinstance(value, str | bytes) else value))

    def _pairs(self, value: dict[Any, Any], depth: int) -> None:
        if depth > limits.DASHBOARD_DEPTH:
            return self._add("{…}")
        self._add("{")
        for number, (name, one) in enumerate(value.items()):
            if number == _ITEMS_MAX:
                self._add(", …")
                break
            self._add(", " if number else "")
            self.write(name, depth + 1)
            self._add(": ")
            if secret(name):
                self._add(HIDDEN)
            else:
                self.write(one, depth + 1)
        return self._add("}")

    def _items(self, value: Iterable[Any], ends: str, depth: int) -> None:
        if depth > limits.DASHBOARD_DEPTH:
            return self._add(f"{ends[0]}…{ends[1]}")
        self._add(ends[0])
        for number, one in enumerate(value):
            if number == _ITEMS_MAX:
                self._add(", …")
                break
            self._add(", " if number else "")
            self.write(one, depth + 1)
        return self._add(ends[1])

    def _add(self, text: str) -> None:
        self.parts.append(text)
        self._room -= len(text)
        if self._room < 0:
            raise _FullError
