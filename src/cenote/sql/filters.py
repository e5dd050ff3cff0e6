"""Filters as SQL: a condition on a jsonb column that holds where `model.filters.matches` does.

Nothing of a filter is ever put into the text: paths travel as jsonpath parameters, values as jsonb and text ones. A
jsonpath in strict mode goes through objects only; what it does not find is NULL, never an error (`silent`).
"""

import json
from collections.abc import Callable
from typing import Final

from cenote.model.filters import Every, Filter, Not, Path, Some, Test

_COMPARES: Final = {"lt": "<", "lte": "<=", "gt": ">", "gte": ">="}


class Condition:
    """A condition on `column`, an expression of type jsonb; `parameters` belong to `$first` and the following."""

    def __init__(self, found: Filter, column: str, *, first: int) -> None:
        self._column = column
        self._first = first
        self.parameters: list[object] = []
        self.text = self._of(found)

    def _of(self, found: Filter) -> str:
        if isinstance(found, Every):
            return f"({' AND '.join(map(self._of, found.parts)) or 'true'})"
        if isinstance(found, Some):
            return f"({' OR '.join(map(self._of, found.parts)) or 'false'})"
        if isinstance(found, Not):
            return f"(NOT {self._of(found.part)})"
        return _WRITTEN[found.operator](self, found)

    def parameter(self, value: object, kind: str) -> str:
        """The place of one more parameter, cast to its type."""
        self.parameters.append(value)
        return f"${self._first + len(self.parameters) - 1}::{kind}"

    def at(self, path: Path) -> str:
        """What stands at the path; NULL where there is nothing."""
        if not path:
            return f"({self._column})"
        return (
            f"jsonb_path_query_first({self._column}, {self.parameter(_jsonpath(path), 'text')}::jsonpath, '{{}}', true)"
        )


def _jsonpath(path: Path) -> str:
    return "strict $" + "".join(f".{json.dumps(name)}" for name in path)


def _eq(into: Condition, test: Test) -> str:
    return f"coalesce({into.at(test.path)} = {into.parameter(json.dumps(test.operand), 'text')}::jsonb, false)"


def _in(into: Condition, test: Test) -> str:
    texts = [json.dumps(one) for one in test.operand]
    return f"coalesce({into.at(test.path)} = ANY ({into.parameter(texts, 'text[]')}::jsonb[]), false)"


def _exists(into: Condition, test: Test) -> str:
    return f"({into.at(test.path)} IS {'NOT ' if test.operand else ''}NULL)"


def _compared(into: Condition, test: Test) -> str:
    found, sign = into.at(test.path), _COMPARES[test.operator]
    if isinstance(test.operand, str):
        operand = into.parameter(test.operand, "text")
        return _only(found, "string", f"({found} #>> '{{}}') COLLATE \"C\" {sign} {operand}")
    return _only(found, "number", f"{found} {sign} {into.parameter(json.dumps(test.operand), 'text')}::jsonb")


def _contains(into: Condition, test: Test) -> str:
    found = into.at(test.path)
    operand = into.parameter(json.dumps(test.operand), "text")
    element = f"EXISTS (SELECT FROM jsonb_array_elements({found}) AS e WHERE e = {operand}::jsonb)"
    condition = _only(found, "array", element)
    if isinstance(test.operand, str):
        within = f"strpos({found} #>> '{{}}', {into.parameter(test.operand, 'text')}) > 0"
        condition = f"({condition} OR {_only(found, 'string', within)})"
    return condition


def _only(found: str, kind: str, condition: str) -> str:
    """The condition where there is a value of that kind; CASE keeps it from being tried elsewhere."""
    return f"coalesce(CASE jsonb_typeof({found}) WHEN '{kind}' THEN {condition} END, false)"


def _opposite(write: Callable[[Condition, Test], str]) -> Callable[[Condition, Test], str]:
    return lambda into, test: f"(NOT {write(into, test)})"


_WRITTEN: Final[dict[str, Callable[[Condition, Test], str]]] = {
    "eq": _eq, "ne": _opposite(_eq), "in": _in, "nin": _opposite(_in), "exists": _exists, "contains": _contains,
    **dict.fromkeys(_COMPARES, _compared),
}  # fmt: skip
