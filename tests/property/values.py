"""All values that cenote promises to carry, and what "the same" means for them."""

import struct
from datetime import datetime, time, timezone
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

_STRINGS = st.one_of(
    st.text(st.characters(codec=None), max_size=20),
    st.text(st.sampled_from(list('a$"\\\x00\x1a\ud800\ude00😀u0')), max_size=8),
    st.sampled_from(["$tuple", "$dict", "$str", "$bytes", "$", "$$"]),
)
_ZONES = st.one_of(
    st.none(),
    st.timezones(),
    st.builds(timezone, st.timedeltas(*(timezone.max.utcoffset(None) * sign for sign in (-1, 1)))),
    st.builds(timezone, st.timedeltas(*(timezone.max.utcoffset(None) * sign for sign in (-1, 1))), _STRINGS),
)
_HASHABLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**60), 10**60),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1e15, 1e16, -1e16, 1e22, 5e-324, 2.0**53]),
    _STRINGS,
    st.binary(max_size=20),
    st.datetimes(timezones=_ZONES),
    st.dates(),
    st.times(timezones=_ZONES),
    st.timedeltas(),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.uuids(allow_nil=True),
)


def _deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = st.recursive(_HASHABLE, lambda key: st.tuples(key, key) | st.frozensets(key, max_size=3), max_leaves=4)
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(_STRINGS, inner, max_size=4),
        st.sets(keys, max_size=3),
        st.frozensets(keys, max_size=3),
    )


VALUES = st.recursive(_HASHABLE, _deeper, max_leaves=20)


def canonical(value: Any) -> Any:
    """A text-like form that is equal exactly when two values are the same: types, signs of zero, folds and all."""
    kind = type(value)
    if kind is dict:
        return kind, sorted((key, canonical(item)) for key, item in value.items())
    if kind in (list, tuple):
        return kind, [canonical(item) for item in value]
    if kind in (set, frozenset):
        return kind, sorted((canonical(item) for item in value), key=repr)
    if kind is float:
        return kind, struct.pack("d", value)
    if kind is Decimal:
        return kind, value.as_tuple()
    if kind in (datetime, time):
        return kind, value.replace(tzinfo=None), value.fold, repr(value.tzinfo), type(value.tzinfo)
    return kind, value
