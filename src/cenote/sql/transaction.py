"""A transaction as a function that may be run more than once.

PostgreSQL ends a transaction with 40001 or 40P01 when running it again may succeed; only the whole function
can be repeated, never a single statement. A lost answer to COMMIT is the one outcome nobody can know, unless the
transaction has left a row that says so (`sql/operations.py`, I12).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from enum import Enum
from typing import Any, Final, TypeVar
from uuid import UUID

import asyncpg

from cenote.errors import CenoteError, OutcomeUnknownError, TransactionError, UnavailableError
from cenote.retry import Backoff
from cenote.sql.errors import FOREIGN, TIER, translated
from cenote.sql.pool import Database

T = TypeVar("T")

_ROLLBACK_TIMEOUT_S: Final = 5.0


class Isolation(Enum):
    """PostgreSQL's isolation levels (manual, 13.2)."""

    READ_COMMITTED = "READ COMMITTED"
    REPEATABLE_READ = "REPEATABLE READ"
    SERIALIZABLE = "SERIALIZABLE"


class Transaction:
    """What a function given to `transact` talks to. Its methods raise cenote's errors.

    After the first error PostgreSQL refuses all further statements of the transaction; the function's run
    is over, but for what happened inside a `savepoint`. Statements wait for each other: one connection runs one.

    Attributes:
        before_commit: awaited, in order, when the function is over: for statements that take what others wait for, and
            therefore come last.
        after_commit: called once the transaction is known to be committed; must not raise.
    Whoever rolls back to a savepoint cuts both lists to the length they had there.
    """

    def __init__(self, db: Database, con: asyncpg.Connection) -> None:
        self._db = db
        self._con = con
        self._turn = asyncio.Lock()
        self._savepoints = 0
        self.failed: CenoteError | None = None
        self.before_commit: list[Callable[[], Awaitable[None]]] = []
        self.after_commit: list[Callable[[], None]] = []

    async def fetch(self, query: str, *args: object) -> list[asyncpg.Record]:
        """All rows."""
        rows: list[asyncpg.Record] = await self._run(self._con.fetch, query, *args)
        return rows

    async def fetchrow(self, query: str, *args: object) -> asyncpg.Record | None:
        """The first row, or None."""
        return await self._run(self._con.fetchrow, query, *args)

    async def fetchval(self, query: str, *args: object) -> Any:
        """The first column of the first row, or None."""
        return await self._run(self._con.fetchval, query, *args)

    async def execute(self, query: str, *args: object, timeout_ms: float | None = None) -> str:
        """The server's command tag, such as `UPDATE 3`. Without arguments, several statements may be
        given."""
        timeout = None if timeout_ms is None else timeout_ms / 1000
        return str(await self._run(self._con.execute, query, *args, timeout=timeout))

    async def executemany(self, query: str, args: list[tuple[object, ...]]) -> None:
        """Run the query once for each tuple."""
        await self._run(self._con.executemany, query, args)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """What fails inside is undone, and the transaction goes on: `async with tx.savepoint()`. The error comes out
        as it is; one that asks to run the whole transaction again ends the transaction all the same."""
        self._savepoints += 1
        name = f"cenote_{self._savepoints}"
        await self.execute(f"SAVEPOINT {name}")
        lengths = len(self.before_commit), len(self.after_commit)
        try:
            yield
        except BaseException as error:
            del self.before_commit[lengths[0] :], self.after_commit[lengths[1] :]
            with suppress(CenoteError):  # the connection is gone: what led here says more
                await self.execute(f"ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}")
                if not isinstance(error, TransactionError):
                    self.failed = None
            raise
        await self.execute(f"RELEASE SAVEPOINT {name}")

    async def _run(self, method: Callable[..., Awaitable[Any]], *args: object, **options: object) -> Any:
        try:
            async with self._turn:
                return await method(*args, **options)
        except FOREIGN as error:
            self.failed = await self._db.mapped(error)
            raise self.failed from error


async def transact(
    db: Database,
    fn: Callable[[Transaction], Awaitable[T]],
    *,
    isolation: Isolation = Isolation.REPEATABLE_READ,
    deadline_ms: float | None = None,
) -> T:
    """Run `fn(tx)` and commit; on 40001 and 40P01 run it again, until it succeeds or the deadline is near.

    `fn` must have no effects outside of the transaction. An exception of its own rolls back and propagates.

    Raises:
        TransactionError: the deadline is spent; `.attempts` and `.elapsed_ms` tell how hard it was tried.
        OutcomeUnknownError: the connection was lost during COMMIT.
        UnavailableError: PostgreSQL went away earlier; nothing was written.
    """
    backoff = Backoff(db.retry, db.retry.deadline_ms if deadline_ms is None else deadline_ms)
    while True:
        try:
            return await attempt(db, fn, isolation, backoff.left_ms)
        except TransactionError as error:
            await backoff.pause(error)
            db.retries += 1


class CommitLost(OutcomeUnknownError):
    """The answer to a COMMIT was lost. If it happened, this was the result, and these are still to be told."""

    result: Any = None
    after_commit: tuple[Callable[[], None], ...] = ()


async def attempt(
    db: Database,
    fn: Callable[[Transaction], Awaitable[T]],
    isolation: Isolation,
    left_ms: float,
    operation: UUID | None = None,
) -> T:
    """One run of `transact`; under an operation id it leaves a row that says whether it was committed."""
    async with db.lent(timeout_ms=left_ms, strange=True) as con:
        tx = Transaction(db, con)
        try:
            await tx.execute(f"BEGIN ISOLATION LEVEL {isolation.value}")
            result = await fn(tx)
            for work in tx.before_commit:
                await work()
            if tx.failed is not None:  # `fn` swallowed it; PostgreSQL would answer COMMIT with a silent rollback
                raise tx.failed
            if operation is not None:
                await tx.execute(db.queries["leave_operation"], operation)
        except BaseException:
            await _roll_back(con)
            raise
        try:
            await _commit(con)
        except CommitLost as lost:
            lost.result, lost.after_commit = result, tuple(tx.after_commit)
            raise
        for tell in tx.after_commit:
            tell()
        return result


async def _commit(con: asyncpg.Connection) -> None:
    try:
        tag = await con.execute("COMMIT")
    except FOREIGN as error:
        ours = translated(error)
        if isinstance(ours, UnavailableError):
            raise CommitLost(
                "the connection was lost during COMMIT: it may or may not have happened", tier=TIER
            ) from error
        raise ours from error
    assert tag == "COMMIT", f"PostgreSQL answered COMMIT with {tag}"


async def _roll_back(con: asyncpg.Connection) -> None:
    """End the transaction; what led here says more than any error on the way."""
    try:
        async with asyncio.timeout(_ROLLBACK_TIMEOUT_S):
            await con.execute("ROLLBACK")
    except FOREIGN:
        with suppress(*FOREIGN):  # the pool has taken a lost connection back already
            con.terminate()
