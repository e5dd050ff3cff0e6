"""Laws of the value codec: what comes back is what went in, and bytes from anywhere raise one kind of error."""

import json
from contextlib import suppress
from copy import deepcopy
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from values import VALUES, canonical

from cenote.errors import CodecError
from cenote.model import value as values


@given(VALUES)
def test_what_comes_back_equals_what_went_in(value: Any) -> None:
    before = deepcopy(value)
    codec, body = values.encode(value)
    back = values.decode(codec, body)
    assert back == value == before
    assert canonical(back) == canonical(value)


@given(VALUES)
def test_sql_is_given_text_that_it_takes_and_enough_to_restore(value: Any) -> None:
    codec, body = values.encode(value)
    text, raw = values.json_text(codec, body)
    assert (raw is None) == (codec == "j")
    assert text is not None
    text.encode("utf-8")
    json.loads(text, parse_constant=lambda name: 1 / 0)
    assert "\\u0000" not in text.replace("\\\\", "")
    assert canonical(values.decode(*values.from_sql(text, raw))) == canonical(value)


@given(st.sampled_from(["j", "r", "jz", "rz", "", "x"]), st.binary(max_size=40))
def test_any_bytes_decode_or_raise_codec_error(codec: str, body: bytes) -> None:
    for read in (values.decode, values.json_text):
        with suppress(CodecError):
            read(codec, body)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["$tuple", "$set", "$frozenset", "$dict", "$str", "$bytes", "$datetime", "$date", "$time", "$timedelta",
             "$decimal", "$uuid", "$x", "a"]
        ),
        inner,
        max_size=2,
    ),
    max_leaves=10,
)  # fmt: skip


@given(_JSON)
def test_any_tags_decode_or_raise_codec_error(tree: Any) -> None:
    with suppress(CodecError):
        values.decode("j", msgspec.json.encode(tree))


@given(VALUES, st.booleans())
def test_packing_changes_nothing(value: Any, large: bool) -> None:
    value = [value, "\x00 " * 20_000] if large else [value]
    codec, body = values.encode(value)
    assert values.pack(*values.unpack(codec, body)) == (codec, body)
    assert canonical(values.decode(codec, body)) == canonical(value)
