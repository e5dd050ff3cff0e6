"""The error taxonomy: one screen, one class for each thing a caller may want to do about it.

Foreign errors (nats-py's, asyncpg's, the operating system's) are mapped in `kv/`, `sql/` and `embedded/` only, and
chained, so that `__cause__` always tells the driver's own words. Every error can be pickled.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class CenoteError(Exception):
    """Base of all errors raised by cenote.

    Attributes:
        key: the key the error is about, or None.
        tier: the name of the tier that failed ("DISTRIBUTED_KV", "RELATIONAL_DB", ...), or None.
        hint: what to do about it, or None.
        retryable: whether the same call may succeed later without a change by the caller.
        code: the name of this kind of error in the specification's `DataError`.
        attempts, elapsed_ms: how often and how long a retried call was tried, or None.
    """

    retryable: ClassVar[bool] = False
    code: ClassVar[str] = "ERROR"

    def __init__(
        self, message: str, *, key: str | None = None, tier: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.key = key
        self.tier = tier
        self.hint = hint
        self.attempts: int | None = None
        self.elapsed_ms: float | None = None

    def __str__(self) -> str:
        message = str(self.args[0])
        return f"{message} ({self.hint})" if self.hint else message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[CenoteError], args: tuple[Any, ...], state: dict[str, Any]) -> CenoteError:
    error = cls.__new__(cls, *args)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error


class NotFoundError(CenoteError):
    """The key does not exist in any tier."""

    code = "NOT_FOUND"


class ExpiredError(NotFoundError):
    """It did exist, and its time ran out; or a position to resume from is no longer kept."""

    code = "TTL_EXPIRED"


class AlreadyExistsError(CenoteError):
    """Something of that name exists already."""

    code = "DUPLICATE_KEY"


class ConflictError(CenoteError):
    """Another write came first: the condition of a compare-and-set does not hold."""

    retryable = True
    code = "VERSION_CONFLICT"


class UnresolvedError(ConflictError):
    """Two concurrent values that no rule may merge; `.current` and `.incoming` carry both sides."""

    def __init__(self, message: str, *, current: Any, incoming: Any, key: str | None = None) -> None:
        super().__init__(message, key=key)
        self.current = current
        self.incoming = incoming


class UnavailableError(CenoteError):
    """A server cannot be reached or does not answer; nothing was written.

    Attributes:
        lasting: it has been away for longer than `kv.outage_after_ms` or `sql.outage_after_ms`, so the call was refused
            at once. It is tried all the time whether the server is back.
    """

    retryable = True
    code = "CONNECTION_FAILED"
    lasting = False


class PoolTimeoutError(UnavailableError):
    """No PostgreSQL connection became free within `sql.acquire_timeout_s`."""


class ServerStartError(UnavailableError):
    """An embedded server could not be started."""

    retryable = False


class OutcomeUnknownError(CenoteError):
    """The answer was lost: the write may or may not have happened. Read before writing again."""

    code = "CONNECTION_FAILED"


class TransactionError(CenoteError):
    """PostgreSQL asked for the transaction to be run again (40001, 40P01)."""

    retryable = True
    code = "SERIALIZATION_ERROR"


class CodecError(CenoteError):
    """Stored bytes that cannot be decoded; `.raw` carries them where they are known."""

    code = "SERIALIZATION_ERROR"
    raw: bytes | None = None


class ConsistencyError(CenoteError):
    """An invariant does not hold; the message names it (I1 … I17)."""

    code = "CONSISTENCY_VIOLATION"


class PartialError(CenoteError):
    """Some of many succeeded: `.done` maps key → result, `.failed` maps key → error."""

    def __init__(self, message: str, *, done: Mapping[str, Any], failed: Mapping[str, BaseException]) -> None:
        super().__init__(message)
        self.done = dict(done)
        self.failed = dict(failed)


class NotDurableError(CenoteError):
    """A durability deadline passed. The write is acknowledged and safe in KV, and will still reach SQL."""

    code = "CONNECTION_FAILED"


class BackpressureError(CenoteError):
    """The unflushed backlog is full; nothing was written. Wait until PostgreSQL has caught up."""

    retryable = True
    code = "CONNECTION_FAILED"


class RejectedError(CenoteError):
    """A key, value or argument that cannot be accepted; the message names the path and the limit."""

    code = "SERIALIZATION_ERROR"


class LifecycleError(CenoteError):
    """An illegal transition of an agent's lifecycle."""

    code = "CONSISTENCY_VIOLATION"


class SetupError(CenoteError):
    """Bad configuration, a schema or a bucket that does not fit, or a closed store; the message says what to do."""

    code = "CONNECTION_FAILED"
