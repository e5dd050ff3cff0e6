"""`attempt`: either outcome of a call as a value."""

import asyncio

import pytest

import cenote
from cenote import errors


async def _gives(value: object) -> object:
    return value


async def _raises(error: BaseException) -> object:
    raise error


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CenoteError)]
SPECIFIED = {
    "NOT_FOUND", "DUPLICATE_KEY", "CONNECTION_FAILED", "SERIALIZATION_ERROR", "VERSION_CONFLICT", "TTL_EXPIRED",
    "CONSISTENCY_VIOLATION",
}  # fmt: skip


def test_the_specification_s_errors_all_have_an_exception() -> None:
    assert {kind.code for kind in KINDS} >= SPECIFIED


@pytest.mark.parametrize("value", [None, 5, [], "x"])
async def test_a_value_comes_back_as_it_is(value: object) -> None:
    result = await cenote.attempt(_gives(value))
    assert result.is_success
    assert result.value is value
    assert (result.error, result.code, result.requires_retry, result.metadata) == (None, None, False, {})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_an_error_is_kept_with_what_it_says(kind: type[cenote.CenoteError]) -> None:
    error = kind.__new__(kind)
    cenote.CenoteError.__init__(error, "it was not to be", key="k", tier="RELATIONAL_DB", hint="try tea")
    result = await cenote.attempt(_raises(error))
    assert not result.is_success
    assert result.error is error
    assert (result.code, result.requires_retry) == (kind.code, kind.retryable)
    assert result.metadata == {"key": "k", "tier": "RELATIONAL_DB", "hint": "try tea"}
    with pytest.raises(kind):
        _ = result.value


@pytest.mark.parametrize("error", [ZeroDivisionError(), asyncio.CancelledError(), KeyError("x")], ids=repr)
async def test_what_is_not_cenote_s_comes_out(error: BaseException) -> None:
    with pytest.raises(type(error)):
        await cenote.attempt(_raises(error))
