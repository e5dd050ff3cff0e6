"""Transactions of users: run again as long as that is safe, and never committed twice (I12).

Each run leaves a row with an id of its own, in the very transaction. When the answer to COMMIT is lost, the same id is
forbidden in another transaction: that waits for the first one, and either finds its row, or stands in its way for ever.
"""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TypeVar
from uuid import UUID

from cenote.errors import (
    OutcomeUnknownError,
    PoolTimeoutError,
    RejectedError,
    TransactionError,
    UnavailableError,
)
from cenote.model.uuid7 import uuid7
from cenote.retry import Backoff
from cenote.sql.errors import TIER
from cenote.sql.pool import Database
from cenote.sql.transaction import CommitLost, Isolation, Transaction, attempt

T = TypeVar("T")

_inside: ContextVar[bool] = ContextVar("cenote_inside", default=False)


async def transact_once(
    db: Database, fn: Callable[[Transaction], Awaitable[T]], isolation: Isolation, deadline_ms: float
) -> T:
    """See `Store.transact`."""
    if _inside.get():
        raise RejectedError("a transaction inside a transaction", hint="use the tx that is there, or tx.savepoint()")
    backoff = Backoff(db.retry, deadline_ms)
    inside = _inside.set(True)
    try:
        while True:
            operation = uuid7()
            try:
                return await attempt(db, fn, isolation, backoff.left_ms, operation)
            except CommitLost as lost:
                if await _happened(db, operation, backoff, lost):
                    for tell in lost.after_commit:
                        tell()
                    result: T = lost.result
                    return result
                await backoff.pause(UnavailableError("PostgreSQL was lost before it had committed", tier=TIER))
            except PoolTimeoutError:
                raise
            except (TransactionError, UnavailableError) as error:
                await backoff.pause(error)  # nothing was written
                db.retries += isinstance(error, TransactionError)
    finally:
        _inside.reset(inside)


async def _happened(db: Database, operation: UUID, backoff: Backoff, lost: CommitLost) -> bool:
    """Whether the transaction was committed; if not, it never will be. Either question may be asked again."""
    while True:
        try:
            await db.execute(db.queries["forbid_operation"], operation)
            return bool(await db.fetchval(db.queries["operation_committed"], operation))
        except (TransactionError, UnavailableError) as error:
            try:
                await backoff.pause(error)
            except (TransactionError, UnavailableError):
                raise OutcomeUnknownError(
                    "the answer to COMMIT was lost, and PostgreSQL cannot be asked what became of it", tier=TIER
                ) from lost
