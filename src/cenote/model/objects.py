"""Dataclasses, pydantic models and msgspec Structs: stored as plain data, built again only into a class that the
reader gives (no name from the store is ever imported).

They are taken apart by their fields, so that each field's value is walked by the rules of all values. pydantic is
not imported here: who has made a model has imported it.
"""

from dataclasses import fields
from typing import Any, NamedTuple, TypeVar, cast

import msgspec

from cenote.errors import CodecError

T = TypeVar("T")


class Root(NamedTuple):
    """The whole content of a pydantic root model, which has no name of its own in the data."""

    value: Any


def take_apart(value: Any) -> dict[str, Any] | list[Any] | Root | None:
    """The fields by name, or in order (array-like Struct), or the root; None for other kinds of object.

    AttributeError when a field was never set.
    """
    kind = type(value)
    if isinstance(value, msgspec.Struct):
        return _struct_parts(value)
    if hasattr(kind, "__dataclass_fields__"):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    is_root = getattr(kind, "__pydantic_root_model__", None)
    if is_root is None:
        return None
    if is_root:
        return Root(value.root)
    extra = value.__pydantic_extra__ or {}
    return {name: getattr(value, name) for name in kind.__pydantic_fields__} | extra


def build(value: object, into: type[T]) -> T:
    """A decoded value as an object of a class; CodecError when it does not fit."""
    try:
        if hasattr(into, "__pydantic_validator__"):
            return cast(T, _validated(into, value))
        return msgspec.convert(value, into, dec_hook=_validated)
    except (ValueError, TypeError, NotImplementedError) as error:  # both libraries' errors are ValueErrors
        name = getattr(into, "__name__", str(into))
        raise CodecError(f"the stored value does not fit {name}: {error}") from error


def _validated(into: Any, value: object) -> Any:
    """A pydantic model or dataclass, by the names of its fields, under which it was stored."""
    if isinstance(value, into):
        return value
    if not hasattr(into, "__pydantic_validator__"):
        raise NotImplementedError(f"{into.__name__} is no dataclass, pydantic model or Struct")
    return into.__pydantic_validator__.validate_python(value, by_name=True)


def _struct_parts(value: Any) -> dict[str, Any] | list[Any]:
    """What msgspec itself would write, so that it reads it again: tag, renamed fields, order."""
    config = value.__struct_config__
    parts = [getattr(value, name) for name in value.__struct_fields__]
    if config.array_like:
        if msgspec.UNSET in parts:
            raise AttributeError("an array-like Struct cannot leave a field unset")
        return parts if config.tag is None else [config.tag, *parts]
    named = zip(value.__struct_encode_fields__, parts, strict=True)
    head = {} if config.tag is None else {config.tag_field: config.tag}
    return head | {name: part for name, part in named if part is not msgspec.UNSET}
