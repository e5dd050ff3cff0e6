"""One text for each value: for telling elements apart, and for the last tie-break between two writes.

`values.encode` keeps the order of a dict's keys and of a set's items, which says nothing about the value and is not
the same in every tier and process; here both are sorted.
"""

from typing import Any, Final

import msgspec

from cenote.errors import RejectedError
from cenote.model import tags

_to_json: Final = msgspec.json.Encoder(order="deterministic").encode
_UNORDERED: Final = ("$set", "$frozenset", "$dict")
_SCALARS: Final = frozenset({type(None), bool, int, float, str, *tags.SCALAR_TYPES})


def canonical(value: object) -> bytes:
    """The same bytes for the same value, exact types included; RejectedError when it cannot be stored."""
    tagged, _ = tags.tag(value)
    return _to_json(_sorted(tagged))


def element_key(element: object) -> str | bytes:
    """What tells the elements of a set apart: as stored, so that 1, 1.0 and True are three.

    RejectedError unless the element is hashable, and comes back from the store as what it is.
    """
    if type(element) is str:
        return element
    _check_element(element)
    return canonical(element)


def _check_element(element: object) -> None:
    kind = type(element)
    if kind is tuple or kind is frozenset:
        for item in element:  # type: ignore[attr-defined]  # a tuple or a frozenset, by exact type
            _check_element(item)
    elif kind not in _SCALARS:
        raise RejectedError(
            f"element: {kind.__name__} cannot be an element: it is not hashable, or not stored as itself"
        )


def _sorted(tree: Any) -> Any:
    if type(tree) is list:
        return [_sorted(item) for item in tree]
    if type(tree) is not dict:
        return tree
    if len(tree) == 1:
        (name,) = tree
        if name in _UNORDERED and type(tree[name]) is list:
            return {name: sorted((_sorted(item) for item in tree[name]), key=_to_json)}
    return {name: _sorted(item) for name, item in tree.items()}
