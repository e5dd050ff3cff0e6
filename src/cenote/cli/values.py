"""Values on the command line: what a user types becomes a value, a value becomes something to read."""

import json
import pprint
import re
from datetime import timedelta
from typing import Any, Final

from cenote.cli.exits import BadUsage
from cenote.cli.output import json_text, note
from cenote.model import value as values

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_UNIT_S: Final = {"ms": 0.001, None: 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_LOOKS_LIKE_JSON: Final = ("{", "[", '"')


def parsed(given: str, *, text: bool) -> Any:
    """What VALUE means: JSON where it is JSON, else the text itself.

    Raises:
        BadUsage: JSON that cannot be carried: a key twice in one object, too deep, too many digits.
    """
    if text:
        return given
    try:
        return json.loads(given, object_pairs_hook=_object, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        if given.lstrip().startswith(_LOOKS_LIKE_JSON):
            note(f"note: stored as text, for it is no JSON: {error.msg} at character {error.pos + 1}")
        return given
    except RecursionError:
        raise BadUsage("VALUE is nested too deep", hint="200 levels at most") from None
    except _NoJson:
        return given
    except ValueError as error:
        raise BadUsage(f"VALUE: {error}", hint="--text stores it as text") from error


class _NoJson(Exception):
    """NaN and Infinity, which Python's parser would take."""


def _no_number(name: str) -> Any:
    raise _NoJson(name)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name in found if sum(other == name for other, _ in pairs) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def duration(text: str) -> timedelta:
    """A time span such as `90`, `90s`, `15m`. BadUsage when it is none."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise BadUsage(f"{text!r} is no time span", hint="a number with ms, s, m, h or d: 90s, 15m, 12h, 7d")
    try:
        return timedelta(seconds=float(found[1]) * _UNIT_S[found[2]])
    except OverflowError:
        raise BadUsage(f"{text!r} is too long", hint="a century at most") from None


def readable(value: Any) -> str:
    """A value to read: JSON if it is made of JSON's types, else as Python writes it."""
    return json_text(value) if _is_json(value) else pprint.pformat(value, width=100, sort_dicts=False)


def document(value: Any) -> tuple[Any, bool]:
    """A value within a JSON document, and whether it is in the tagged form of the store."""
    if _is_json(value):
        return value, False
    codec, body = values.encode(value)
    return json.loads(values.unpack(codec, body)[1]), True


def _is_json(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(map(_is_json, value.values()))
    return value is None or isinstance(value, bool | int | float | str)
