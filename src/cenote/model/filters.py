"""Filters: which documents somebody means, as plain data. Pure; `matches` is what each operator means.

    {"kind": "cave", "depth_m": {"gt": 30}, "guide.name": {"in": ["Ada", "Bo"]}, "not": {"closed": True}}

All entries of a mapping must hold. A path goes through objects by their keys; `$` alone is the whole document; a `\\`
before a dot, a `$` or a `\\` takes it literally. A filter looks at a document as the jsonb column has it: a set of the
program is `{"$set": […]}` there, and U+FFFD stands for what PostgreSQL's text cannot carry. The operators:

- `eq`, `ne`: equal as JSON: 1 is 1.0, but neither True nor "1"; the order of an object's keys says nothing;
- `lt`, `lte`, `gt`, `gte`: of two numbers, or of two texts by their characters; anything else is no match;
- `in`, `nin`: equal to one of a list;
- `contains`: an array has an equal element, or a text has the text within;
- `exists`: whether there is anything at the path, null included;
- `and`, `or` with a list of filters, `not` with one.

`ne`, `nin` and `not` are the plain opposites, so they hold as well where there is nothing at the path.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import msgspec

from cenote import limits
from cenote.errors import RejectedError
from cenote.model import tags
from cenote.model import value as values

Path = tuple[str, ...]
ABSENT: Final = object()

_ORDERED: Final = ("lt", "lte", "gt", "gte")
OPERATORS: Final = ("eq", "ne", *_ORDERED, "in", "nin", "contains", "exists")
_JOINED: Final = ("and", "or", "not")


@dataclass(frozen=True, slots=True)
class Test:
    """One operator at one path."""

    __test__ = False  # the name begins with Test; it is not a test case

    path: Path
    operator: str
    operand: Any


@dataclass(frozen=True, slots=True)
class Every:
    """All parts hold; an empty one always does."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Some:
    """At least one part holds; an empty one never does."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: "Filter"


Filter = Test | Every | Some | Not


def parse(where: Mapping[str, Any]) -> Filter:
    """The filter that plain data means. RejectedError names the place in it, and the limit."""
    budget = [limits.FILTER_TESTS_MAX]
    return _parse(where, "where", limits.FILTER_DEPTH_MAX, budget)


def matches(found: Filter, document: Any) -> bool:
    """Whether a document, as JSON has it, is one of those that are meant."""
    if isinstance(found, Every):
        return all(matches(part, document) for part in found.parts)
    if isinstance(found, Some):
        return any(matches(part, document) for part in found.parts)
    if isinstance(found, Not):
        return not matches(found.part, document)
    return _holds(found.operator, _at(found.path, document), found.operand)


def contained(found: Filter) -> Any:
    """A document that every match contains (jsonb's `@>`), by which an index can find them; None: nothing is known."""
    parts = found.parts if isinstance(found, Every) else (found,)
    whole: Any = None
    for part in parts:
        if isinstance(part, Every):
            inner = contained(part)
        elif isinstance(part, Test) and part.operator == "eq" and part.path:
            inner = part.operand
            for name in reversed(part.path):
                inner = {name: inner}
        else:
            inner = None
        whole = _joined(whole, inner)
    return whole


def equal(left: Any, right: Any) -> bool:
    """Equal as jsonb has it."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if _number(left) and _number(right):
        return bool(_decimal(left) == _decimal(right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[name], right[name]) for name in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    return type(left) is type(right) and bool(left == right)


# --- reading plain data --------------------------------------------------------------------------------------


def _parse(where: Any, place: str, room: int, budget: list[int]) -> Filter:
    if not isinstance(where, Mapping):
        raise RejectedError(f"{place}: a filter is a mapping, not {type(where).__name__}")
    if room == 0:
        raise RejectedError(f"{place}: nested deeper than {limits.FILTER_DEPTH_MAX}")
    parts: list[Filter] = []
    for name, given in where.items():
        if type(name) is not str:
            raise RejectedError(f"{place}: a path is a text, not {type(name).__name__}")
        here = f"{place}.{name[:60]}"
        if name == "not":
            parts.append(Not(_parse(given, here, room - 1, budget)))
        elif name in _JOINED:
            if isinstance(given, str) or not isinstance(given, Sequence):
                raise RejectedError(f"{here}: a list of filters is needed")
            inner = tuple(_parse(one, f"{here}[{i}]", room - 1, budget) for i, one in enumerate(given))
            parts.append(Every(inner) if name == "and" else Some(inner))
        else:
            parts += _tests(_path(name, here), given, here, budget)
    return parts[0] if len(parts) == 1 else Every(tuple(parts))


def _tests(path: Path, given: Any, here: str, budget: list[int]) -> list[Filter]:
    asked = given if isinstance(given, Mapping) and given else {"eq": given}
    tests: list[Filter] = []
    for operator, operand in asked.items():
        budget[0] -= 1
        if budget[0] < 0:
            raise RejectedError(f"{here}: more than {limits.FILTER_TESTS_MAX} tests")
        if operator not in OPERATORS:
            raise RejectedError(
                f"{here}: there is no operator {str(operator)[:60]!r}",
                hint=f"there are {', '.join((*OPERATORS, *_JOINED))}; a path into an object is written 'a.b'",
            )
        tests.append(Test(path, operator, _operand(operator, operand, f"{here}.{operator}")))
    return tests


def _operand(operator: str, operand: Any, here: str) -> Any:
    if operator == "exists":
        if type(operand) is not bool:
            raise RejectedError(f"{here}: True or False is needed")
        return operand
    if operator in ("in", "nin"):
        if isinstance(operand, str | Mapping) or not isinstance(operand, Sequence | set | frozenset):
            raise RejectedError(f"{here}: a list is needed")
        if len(operand) > limits.FILTER_TESTS_MAX:
            raise RejectedError(f"{here}: {len(operand)} values; the limit is {limits.FILTER_TESTS_MAX}")
        return [_json(one, f"{here}[{i}]") for i, one in enumerate(operand)]
    if operator in _ORDERED and not (_number(operand) or type(operand) is str):
        raise RejectedError(f"{here}: a number or a text is needed, not {type(operand).__name__}")
    return _json(operand, here)


def _json(operand: Any, here: str) -> Any:
    """The operand as the jsonb column has such a value."""
    try:
        text = values.unpack(*values.encode(operand))[1]
    except RejectedError as error:
        raise RejectedError(f"{here}: {error.args[0]}") from None
    if len(text) > limits.FILTER_OPERAND_BYTES_MAX:
        raise RejectedError(f"{here}: {len(text)} bytes; the limit is {limits.FILTER_OPERAND_BYTES_MAX}")
    return tags.project(msgspec.json.decode(text))


def _path(name: str, here: str) -> Path:
    if name == "$":
        return ()
    names, literal = [""], False
    for character in name:
        if literal or character not in "\\.":
            names[-1] += character
            literal = False
        elif character == "\\":
            literal = True
        else:
            names.append("")
    if len(names) > limits.FILTER_DEPTH_MAX:
        raise RejectedError(f"{here}: deeper than {limits.FILTER_DEPTH_MAX}")
    return tuple(tags.project(one) for one in names)


# --- what the operators mean ---------------------------------------------------------------------------------


def _at(path: Path, document: Any) -> Any:
    for name in path:
        if not isinstance(document, dict) or name not in document:
            return ABSENT
        document = document[name]
    return document


def _holds(operator: str, found: Any, operand: Any) -> bool:
    if operator == "exists":
        return (found is not ABSENT) is bool(operand)
    if operator == "eq":
        return found is not ABSENT and equal(found, operand)
    if operator == "ne":
        return found is ABSENT or not equal(found, operand)
    if operator == "in":
        return found is not ABSENT and any(equal(found, one) for one in operand)
    if operator == "nin":
        return found is ABSENT or not any(equal(found, one) for one in operand)
    if operator == "contains":
        if isinstance(found, list):
            return any(equal(one, operand) for one in found)
        return isinstance(found, str) and isinstance(operand, str) and operand in found
    return _compared(operator, found, operand)


def _compared(operator: str, found: Any, operand: Any) -> bool:
    if _number(found) and _number(operand):
        left, right = _decimal(found), _decimal(operand)
    elif isinstance(found, str) and isinstance(operand, str):
        left, right = found, operand
    else:
        return False
    if operator == "lt":
        return bool(left < right)
    if operator == "lte":
        return bool(left <= right)
    return bool(left > right) if operator == "gt" else bool(left >= right)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _decimal(value: float) -> Any:
    """As jsonb reads the number's text: a float is what it is written as."""
    return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)


def _joined(left: Any, right: Any) -> Any:
    """Two documents that are both contained, as one; where they do not agree, one of them will do."""
    if left is None or right is None:
        return right if left is None else left
    if isinstance(left, dict) and isinstance(right, dict):
        return left | {name: _joined(left.get(name), right[name]) for name in right}
    return left
