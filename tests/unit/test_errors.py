"""The error taxonomy: what a caller can rely on in each class."""

import copy
import inspect
import pickle
from typing import Any

import pytest

from cenote import errors
from cenote.errors import CenoteError, PartialError, UnresolvedError

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, CenoteError)]
CODES = {
    "ERROR", "NOT_FOUND", "TTL_EXPIRED", "DUPLICATE_KEY", "VERSION_CONFLICT", "CONNECTION_FAILED",
    "SERIALIZATION_ERROR", "CONSISTENCY_VIOLATION",
}  # fmt: skip


def made(kind: type[CenoteError]) -> CenoteError:
    if issubclass(kind, UnresolvedError):
        return kind("it broke", current=1, incoming=2, key="plan")
    if issubclass(kind, PartialError):
        return kind("it broke", done={"a": 1}, failed={"b": ValueError("no")})
    return kind("it broke", key="plan", tier="DISTRIBUTED_KV", hint="do this")


@pytest.mark.parametrize("kind", CLASSES)
def test_each_error_survives_pickle_and_copy(kind: type[CenoteError]) -> None:
    error = made(kind)
    error.attempts, error.elapsed_ms = 3, 12.5
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        assert again.args == error.args
        assert {k: repr(v) for k, v in vars(again).items()} == {k: repr(v) for k, v in vars(error).items()}


@pytest.mark.parametrize("kind", CLASSES)
def test_each_error_says_whether_to_try_again_and_what_it_is(kind: type[CenoteError]) -> None:
    assert isinstance(kind.retryable, bool)
    assert kind.code in CODES
    assert kind.__doc__


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (errors.ExpiredError, errors.NotFoundError),
        (errors.UnresolvedError, errors.ConflictError),
        (errors.PoolTimeoutError, errors.UnavailableError),
        (errors.ServerStartError, errors.UnavailableError),
    ],
)
def test_the_special_cases_are_caught_with_their_kind(kind: Any, base: Any) -> None:
    assert issubclass(kind, base)


def test_only_what_may_succeed_later_is_retryable() -> None:
    assert {kind.__name__ for kind in CLASSES if kind.retryable} == {
        "ConflictError", "UnresolvedError", "UnavailableError", "PoolTimeoutError", "TransactionError",
        "BackpressureError",
    }  # fmt: skip


def test_the_hint_is_part_of_the_text() -> None:
    assert str(CenoteError("schema behind", hint="run: cenote migrate")) == "schema behind (run: cenote migrate)"
    assert str(CenoteError("plain")) == "plain"
