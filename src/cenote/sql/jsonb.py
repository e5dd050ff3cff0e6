"""Values in columns of their own: jsonb to be queried, the exact bytes beside it only where jsonb would change them."""

from typing import Any

from cenote.errors import RejectedError
from cenote.model import value as values


def encoded(value: object, *, what: str, bytes_max: int) -> tuple[str | None, bytes | None]:
    """The text for the jsonb column, and the exact bytes where that is not enough. RejectedError names `what`, the path
    inside the value and the limit."""
    try:
        codec, body = values.encode(value)
    except RejectedError as error:
        raise RejectedError(f"{what}: {error.args[0]}", hint=error.hint) from None
    size = len(values.unpack(codec, body)[1])
    if size > bytes_max:
        raise RejectedError(f"{what}: {size} bytes encoded; the limit is {bytes_max}")
    return values.json_text(codec, body)


def decoded(text: str | None, raw: bytes | None) -> Any:
    """The value that `encoded` was given. CodecError for bytes that it did not make."""
    return values.decode(*values.from_sql(text, raw))
