"""Either outcome as a value, for those who want no exceptions (specification 6.1): `await cenote.attempt(…)`."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cenote.errors import CenoteError

T = TypeVar("T")

_TOLD = ("version", "durability", "written_at", "expires_at", "tier", "writer")
"""What a `Receipt`, an `Entry` and their like say of themselves."""


@dataclass(frozen=True, slots=True)
class DataResult(Generic[T]):
    """What became of a call.

    Attributes:
        error: why it failed; None: it did not.
        metadata: of a success what its value says of itself, as far as it does: version, durability, times, tier,
            writer; of a failure key, tier, hint, attempts, elapsed_ms, as far as they are known.
    """

    _value: T | None
    error: CenoteError | None
    metadata: dict[str, Any]

    @property
    def is_success(self) -> bool:
        """Whether there is a value."""
        return self.error is None

    @property
    def value(self) -> T:
        """The value; raises the error where there is none."""
        if self.error is not None:
            raise self.error
        return self._value  # type: ignore[return-value]  # None only where that is the value

    @property
    def code(self) -> str | None:
        """The error's name in the specification's `DataError`; None: no error."""
        return None if self.error is None else self.error.code

    @property
    def requires_retry(self) -> bool:
        """Whether the same call may succeed later, without a change by the caller."""
        return self.error is not None and self.error.retryable


async def attempt(call: Awaitable[T]) -> DataResult[T]:
    """Await a call and keep its outcome. Only cenote's errors are kept: a cancellation, and the errors of a program,
    come out as ever."""
    try:
        value = await call
    except CenoteError as error:
        said = ("key", "tier", "hint", "attempts", "elapsed_ms")
        return DataResult(None, error, {name: told for name in said if (told := getattr(error, name)) is not None})
    return DataResult(value, None, {name: getattr(value, name) for name in _TOLD if hasattr(value, name)})
