"""Types that JSON has no word for, as tagged JSON: `{"$tuple": [1, 2]}`, `{"$bytes": "aGk="}`, ...

An object with one member whose name begins with `$` is always a tag; a dict of the user's that looks so is
wrapped in `$dict`. A tag names a type of the standard library (no name from the store is ever imported).

Two walks, by exact type: `tag` before a write names the path of what cannot be carried, `untag` after a read
builds the value again. `project` makes what SQL users query where jsonb cannot carry the value.
"""

import math
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from importlib import import_module
from typing import Any, Final, cast
from uuid import UUID
from zoneinfo import ZoneInfo

from cenote import limits
from cenote.errors import RejectedError
from cenote.model import objects
from cenote.model.key import from_sql_key as unescape
from cenote.model.key import sql_key as escape

Path = tuple[Any, str] | None
"""Where we are inside the value: the path of the container, and the last step."""

_INT_END: Final = 10**limits.INT_DIGITS_MAX
_NOT_UTF8: Final = re.compile("[\ud800-\udfff]")
_NOT_IN_JSONB: Final = re.compile("[\x00\ud800-\udfff]")
_IDENTIFIER: Final = re.compile(r"[^\W\d]\w*", re.ASCII)
_MERGING: Final = "cenote.model.merging."
_CLOCKED: Final = "cenote.model.clocked"
_DOCUMENT: Final = "cenote.model.merging.document"
_BASES: Final = (
    bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset,
    date, time, timedelta, tzinfo, Decimal, UUID, Enum, type,
)  # fmt: skip


def tag(value: object) -> tuple[Any, bool]:
    """The value as plain JSON, and whether jsonb would change it; RejectedError names the path."""
    walk = _Tagging()
    return walk.plain(value, None, limits.VALUE_DEPTH_MAX), walk.inexact


class _Tagging:
    """One walk over one value."""

    def __init__(self) -> None:
        self.inexact = False

    def plain(self, value: Any, path: Path, room: int) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            return self._text(value)
        if kind is int:
            return value if -_INT_END < value < _INT_END else _reject(path, _TOO_MANY_DIGITS)
        if kind is float:
            return self._float(value, path)
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            name, write = scalar
            return {name: write(value, path)}
        if room == 0:
            _reject(path, f"nested deeper than {limits.VALUE_DEPTH_MAX}, or within itself")
        if kind is dict:
            return self._mapping(value, path, room - 1)
        if kind is list:
            return [self.plain(item, (path, f"[{i}]"), room - 1) for i, item in enumerate(value)]
        if kind is tuple:
            return {"$tuple": [self.plain(item, (path, f"[{i}]"), room - 1) for i, item in enumerate(value)]}
        if kind is set or kind is frozenset:
            return {f"${kind.__name__}": [self.plain(item, (path, "{}"), room - 1) for item in value]}
        return self._object(value, path, room - 1)

    def _text(self, text: str) -> Any:
        if not text.isascii() and _NOT_UTF8.search(text):
            self.inexact = True
            return {"$str": escape(text)}
        return text

    def _float(self, number: float, path: Path) -> float:
        if not math.isfinite(number):
            _reject(path, f"{number} is no finite number")
        self.inexact |= abs(number) >= 1e16 or (number == 0.0 and math.copysign(1.0, number) < 0.0)
        return number

    def _mapping(self, items: Mapping[Any, Any], path: Path, room: int) -> Any:
        pairs = []
        lossless = True
        for key, item in items.items():
            if type(key) is not str:
                _reject((path, f"[{_short(key)}]"), f"a key must be a str, not {_type_name(key)}")
            name = self._text(key)
            lossless &= name is key
            pairs.append((name, self.plain(item, (path, _step(key)), room)))
        if not lossless:
            return {"$dict": [[name, item] for name, item in pairs]}
        plain = dict(pairs)
        return {"$dict": plain} if len(plain) == 1 and pairs[0][0].startswith("$") else plain

    def _object(self, value: Any, path: Path, room: int) -> Any:
        home = getattr(type(value), "__module__", "")
        if home == _DOCUMENT:
            return {
                "$loro": _document().write(value, lambda item: self.plain(item, (path, ".value"), max(room - 1, 0)))
            }
        if home.startswith(_MERGING):
            return self._merging(value, path, room - 4)  # tag, body, column, row
        if home == _CLOCKED:
            return {"$clocked": _clocked().write(value, lambda item: self.plain(item, (path, ".value"), room))}
        parts = None
        try:
            if not isinstance(value, _BASES):
                parts = objects.take_apart(value)
        except AttributeError as error:
            _reject(path, f"{_type_name(value)}: {error}")
        if isinstance(parts, dict):
            return self._mapping(parts, path, room)
        if isinstance(parts, list):
            return [self.plain(item, (path, f"[{i}]"), room) for i, item in enumerate(parts)]
        if isinstance(parts, objects.Root):
            return self.plain(parts.value, path, room)
        return _reject(path, f"{_type_name(value)} is not among the types that can be stored")

    def _merging(self, value: Any, path: Path, room: int) -> Any:
        if room < 0:
            _reject(path, f"nested deeper than {limits.VALUE_DEPTH_MAX}")
        return _wire().write(value, lambda item: self.plain(item, (path, "{}"), room))


def untag(value: Any) -> Any:
    """The value behind its tagged JSON; changes `value` in place. ValueError and the like when a tag is wrong."""
    kind = type(value)
    if kind is dict:
        if len(value) == 1:
            (name,) = value
            if name[:1] == "$":
                return _READERS[name](value[name])
        for name, item in value.items():
            if type(item) is dict or type(item) is list:
                value[name] = untag(item)
    elif kind is list:
        for i, item in enumerate(value):
            if type(item) is dict or type(item) is list:
                value[i] = untag(item)
    return value


def project(value: Any) -> Any:
    """Tagged JSON as PostgreSQL's jsonb accepts it: texts and keys with U+FFFD for what it cannot carry."""
    kind = type(value)
    if kind is str:
        return _NOT_IN_JSONB.sub("\ufffd", value)
    if kind is list:
        return [project(item) for item in value]
    if kind is not dict:
        return value
    if len(value) == 1:
        (name,) = value
        if name == "$str":
            return _NOT_IN_JSONB.sub("\ufffd", unescape(value[name]))
        if name == "$dict":
            return {project(key): project(item) for key, item in _pairs(value[name])}
    return {project(name): project(item) for name, item in value.items()}


# --- one type each: how it is written, how it is read ----------------------------------------------------------


def _write_decimal(number: Decimal, path: Path) -> str:
    return str(number) if number.is_finite() else _reject(path, f"{number} is no finite number")


def _write_datetime(at: datetime, path: Path) -> Any:
    """ISO 8601 where that says all; with a zone's name, or the second of two equal times: [time, zone, fold]."""
    zone = at.tzinfo
    if at.fold == 0 and (zone is None or _is_plain_offset(zone)):
        return at.isoformat()
    return _written_with_zone(at, _read_datetime, path)


def _write_time(at: time, path: Path) -> Any:
    zone = at.tzinfo
    if at.fold == 0 and (zone is None or _is_plain_offset(zone)):
        return at.isoformat()
    return _written_with_zone(at, _read_time, path)


def _is_plain_offset(zone: tzinfo) -> bool:
    """An offset of whole seconds, without a name: fromisoformat takes `+00:00:00.000001` for UTC (CPython 3.11)."""
    return type(zone) is timezone and len(args := _timezone_args(zone)) == 1 and not args[0].microseconds


def _timezone_args(zone: timezone) -> tuple[Any, ...]:
    """What it was made of: the offset, and its name if it was given one (a name is not told by equality)."""
    args: tuple[Any, ...] = zone.__getinitargs__()  # type: ignore[attr-defined]  # as pickle finds them
    return args


def _write_zone(zone: tzinfo | None, path: Path) -> Any:
    if zone is None:
        return None
    if type(zone) is timezone:
        offset, *name = _timezone_args(zone)
        return [_write_timedelta(offset, path), *map(escape, name)]
    if type(zone) is ZoneInfo and zone.key is not None:
        return zone.key
    return _reject(path, f"tzinfo {_type_name(zone)} is neither a timezone nor a ZoneInfo with a key")


def _written_with_zone(at: Any, read: Callable[[Any], Any], path: Path) -> list[Any]:
    """[time, zone, fold], read once for a check: a ZoneInfo from a file may not be the one that its key names."""
    written = [at.replace(tzinfo=None, fold=0).isoformat(), _write_zone(at.tzinfo, path), at.fold]
    try:
        again = read(written)
        if again == at and again.utcoffset() == at.utcoffset():
            return written
    except (LookupError, ValueError, OSError):
        pass  # there is no such zone here
    return cast(list[Any], _reject(path, f"its tzinfo {at.tzinfo} is not the one that is known here by this name"))


def _write_timedelta(span: timedelta, path: Path) -> list[int]:
    return [span.days, span.seconds, span.microseconds]


def _read_zone(written: Any) -> tzinfo | None:
    if written is None:
        return None
    if type(written) is str:
        return ZoneInfo(written)
    offset, *name = written
    return timezone(timedelta(*offset), *map(unescape, name))


def _read_datetime(written: Any) -> datetime:
    if type(written) is str:
        return datetime.fromisoformat(written)
    text, zone, fold = written
    return datetime.fromisoformat(text).replace(tzinfo=_read_zone(zone), fold=fold)


def _read_time(written: Any) -> time:
    if type(written) is str:
        return time.fromisoformat(written)
    text, zone, fold = written
    return time.fromisoformat(text).replace(tzinfo=_read_zone(zone), fold=fold)


def _read_dict(written: Any) -> dict[str, Any]:
    """Its members are read each for itself: the dict as a whole is no tag, whatever it looks like."""
    return {untag(key): untag(item) for key, item in _pairs(written)}


def _pairs(written: Any) -> Iterable[tuple[Any, Any]]:
    """`$dict` holds an object, or pairs where a key needs a tag of its own."""
    return written.items() if type(written) is dict else written


_SCALARS: Final[dict[type, tuple[str, Callable[[Any, Path], Any]]]] = {
    bytes: ("$bytes", lambda data, path: b64encode(data).decode()),
    datetime: ("$datetime", _write_datetime),
    date: ("$date", lambda day, path: day.isoformat()),
    time: ("$time", _write_time),
    timedelta: ("$timedelta", _write_timedelta),
    Decimal: ("$decimal", _write_decimal),
    UUID: ("$uuid", lambda uuid, path: str(uuid)),
}
SCALAR_TYPES: Final = tuple(_SCALARS)


def _wire() -> Any:
    """The forms of merging values, imported when one is met."""
    return import_module("cenote.model.merging.wire")


def _clocked() -> Any:
    return import_module(_CLOCKED)


def _document() -> Any:
    return import_module(_DOCUMENT)


def _reader_of(kind: str) -> Callable[[Any], Any]:
    return lambda body: _wire().read(kind, body)


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "$tuple": lambda items: tuple(untag(items)),
    "$set": lambda items: set(untag(items)),
    "$frozenset": lambda items: frozenset(untag(items)),
    "$dict": _read_dict,
    "$str": lambda text: unescape("" + text),
    "$bytes": lambda text: b64decode(text, validate=True),
    "$datetime": _read_datetime,
    "$date": date.fromisoformat,
    "$time": _read_time,
    "$timedelta": lambda parts: timedelta(*parts),
    "$decimal": Decimal,
    "$uuid": UUID,
}
for _kind in ("appendlog", "gcounter", "gset", "lwwregister", "mvregister", "ormap", "orset", "pncounter"):
    _READERS[f"${_kind}"] = _reader_of(_kind)
_READERS["$clocked"] = lambda body: _clocked().read(body)
_READERS["$loro"] = lambda body: _document().read(body)

# --- refusing --------------------------------------------------------------------------------------------------

_TOO_MANY_DIGITS: Final = f"an int of more than {limits.INT_DIGITS_MAX} digits"


def _reject(path: Path, why: str) -> Any:
    steps: list[str] = []
    while path is not None:
        path, step = path
        steps.append(step)
    if len(steps) > 20:
        steps[10:-10] = ["…"]
    raise RejectedError(f"value{''.join(reversed(steps))}: {why}")


def _step(key: str) -> str:
    return f".{key}" if len(key) <= 60 and _IDENTIFIER.fullmatch(key) else f"[{_short(key)}]"


def _short(key: object) -> str:
    text = ascii(key)
    return text if len(text) <= 60 else text[:57] + "..."


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
