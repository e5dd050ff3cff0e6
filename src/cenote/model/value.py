"""Values as bytes: what comes back equals what went in, or it is refused with the path of what cannot.

A stored value is a codec and a body. The codec's first letter says what PostgreSQL's jsonb does with the body:

- `j`: JSON that jsonb carries exactly (but for the order of keys);
- `r`: JSON that jsonb would refuse or change: SQL keeps the exact bytes beside a best-effort projection.

A following `z` says that the body is compressed. The KV bytes are the truth; none of them is decoded on the way
to SQL, but for a projection. Types that JSON has no word for are tagged (`tags.py`); the ordinary value pays one
walk by exact type.
"""

import zlib
from math import copysign
from typing import Any, Final, TypeVar

import msgspec

from cenote import limits
from cenote.errors import CodecError, RejectedError
from cenote.model import objects, tags

T = TypeVar("T")

_to_json: Final = msgspec.json.Encoder().encode
_from_json: Final = msgspec.json.Decoder().decode

_PLAIN, _INEXACT, _SPECIAL = 0, 1, 2
_INT_END: Final = 10**limits.INT_DIGITS_MAX
_INT_MIN: Final = -_INT_END
_FLOAT_MIN, _FLOAT_END = -1e16, 1e16
"""From here on a float is written with an exponent, jsonb prints it as an integer, and it comes back as one."""

_DOLLAR, _BACKSLASH = b"$\\"
"""Searches begin with these ints: `36 in body` is one memchr, `b"$" in body` takes eight times as long (CPython
tries its right side as an int first, and swallows the TypeError)."""

_ZLIB: Final = b"\x78"  # zlib's format begins so with a full window, and no JSON text does
_BROKEN: Final = (
    ValueError, TypeError, LookupError, ArithmeticError, AttributeError, OSError, RecursionError,
)  # fmt: skip
"""What msgspec and the constructors of tagged types raise on bytes that we have not written."""


def encode(value: object) -> tuple[str, bytes]:
    """Codec and body of a value; RejectedError names the path inside the value, and the limit."""
    try:
        found = _survey(value, limits.VALUE_DEPTH_MAX)
        if found != _SPECIAL:
            try:
                return _finished(_to_json(value), found == _INEXACT)
            except UnicodeEncodeError:
                pass  # lone surrogates
        tagged, inexact = tags.tag(value)
        return _finished(_to_json(tagged), inexact)
    except RecursionError:
        raise RejectedError("value: nested too deep for what is left of the call stack") from None


def decode(codec: str, body: bytes) -> Any:
    """The value, a new one at each call; CodecError when the bytes are not what the codec says."""
    if codec != "j":
        codec, body = unpack(codec, body)
    try:
        value = _from_json(body)
        return tags.untag(value) if _DOLLAR in body and b'"$' in body else value
    except _BROKEN as error:
        raise _undecodable(codec, body, str(error)) from error


def decode_into(value: object, into: type[T]) -> T:
    """A decoded value as the dataclass, pydantic model or Struct `into`; CodecError when it does not fit."""
    return objects.build(value, into)


def pack(codec: str, body: bytes) -> tuple[str, bytes]:
    """Compress a body that is large enough when that saves more than a tenth."""
    if len(body) >= limits.COMPRESS_BYTES_MIN and not codec.endswith("z"):
        packed = zlib.compress(body, 1)
        if len(packed) * 10 < len(body) * 9:
            return codec + "z", packed
    return codec, body


def unpack(codec: str, body: bytes) -> tuple[str, bytes]:
    """The JSON body, and its codec without `z`; CodecError for other codecs and broken bytes."""
    if codec in ("jz", "rz"):
        inflate = zlib.decompressobj()
        try:
            text = inflate.decompress(body, limits.VALUE_BYTES_MAX + 1)
        except zlib.error as error:
            raise _undecodable(codec, body, str(error)) from error
        if not inflate.eof or inflate.unused_data or len(text) > limits.VALUE_BYTES_MAX:
            raise _undecodable(codec, body, "cut short, too long, or with something behind it")
        return codec[0], text
    if codec in ("j", "r"):
        return codec, body
    raise _undecodable(codec, body, "there is no such codec")


def json_text(codec: str, body: bytes) -> tuple[str | None, bytes | None]:
    """What SQL keeps: the text for its jsonb column, and the exact bytes where that is not enough.

    The text beside exact bytes is a projection to be queried, never read back: U+FFFD stands for what PostgreSQL's
    text cannot carry, and it is None for a body above `limits.JSONB_BYTES_MAX`.
    """
    kind, text = unpack(codec, body)
    try:
        if kind == "j":
            return text.decode(), None
        if len(text) > limits.JSONB_BYTES_MAX:
            return None, body
        if b"\\u0000" in text or b'"$' in text:
            text = _to_json(tags.project(_from_json(text)))
        return text.decode(), body
    except _BROKEN as error:
        raise _undecodable(codec, body, str(error)) from error


def from_sql(value_text: str | None, raw: bytes | None) -> tuple[str, bytes]:
    """Codec and body of a row: the exact bytes where SQL has them, else jsonb's text."""
    if raw is not None:
        return ("rz" if raw[:1] == _ZLIB else "r"), raw
    if value_text is None:
        raise CodecError("a row without a value")
    return "j", value_text.encode()


def _survey(value: Any, room: int) -> int:
    """Whether msgspec writes the value as it is, whether jsonb then carries it, or whether `tags` must look at it.

    By exact type, because msgspec would write a subclass as its base, and NaN as null. The hot path: 45 ns an item.
    """
    kind = type(value)
    if kind is dict:
        for key in value:
            if type(key) is not str:
                return _SPECIAL
        if len(value) == 1 and key[:1] == "$":
            return _SPECIAL
        value = value.values()
    elif kind is not list:
        value = (value,)
    if room == 0:
        return _SPECIAL
    found = _PLAIN
    for item in value:
        kind = type(item)
        if kind is str or kind is bool or item is None:
            continue
        if kind is int:
            if not _INT_MIN < item < _INT_END:
                return _SPECIAL
        elif kind is float:
            if not _FLOAT_MIN < item < _FLOAT_END:
                if item - item != 0.0:  # NaN and the infinities
                    return _SPECIAL
                found = _INEXACT
            elif not item and copysign(1.0, item) < 0.0:  # jsonb's numeric has no sign for zero
                found = _INEXACT
        elif kind is dict or kind is list:
            inner = _survey(item, room - 1)
            if inner != _PLAIN:
                if inner == _SPECIAL:
                    return inner
                found = inner
        else:
            return _SPECIAL
    return found


def _finished(body: bytes, inexact: bool) -> tuple[str, bytes]:
    codec = "r" if inexact or (_BACKSLASH in body and b"\\u0000" in body) else "j"
    size = len(body)
    if size < limits.COMPRESS_BYTES_MIN:
        return codec, body
    if size > limits.VALUE_BYTES_MAX:
        raise RejectedError(f"value: {size} bytes encoded; the limit is {limits.VALUE_BYTES_MAX}")
    return pack("r" if size > limits.JSONB_BYTES_MAX else codec, body)


def _undecodable(codec: str, body: bytes, why: str) -> CodecError:
    error = CodecError(
        f"stored bytes of codec {codec[:20]!r} cannot be decoded: {why}",
        hint="they are kept; if a newer cenote wrote them, upgrade this process: pip install --upgrade cenote",
    )
    error.raw = body
    return error
