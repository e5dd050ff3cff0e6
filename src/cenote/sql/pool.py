"""The connections to PostgreSQL, and every way a call on one of them may fail.

The pool opens at the first use: a process that neither flushes nor reads SQL opens no connection. asyncpg's
pool does the keeping; ours are the maximum lifetime, the distinction between "all in use" and "not
reachable", the mapping of errors, and the going away of a primary that was demoted (25006) while its
connections live on; and that a connection which was left clean stays at hand for the next call (`parked.py`).

A cancelled call never poisons the pool: asyncpg cancels the statement on the server, and its release,
shielded, waits for that before the connection is handed out again.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

import asyncpg

from cenote.errors import CenoteError, PoolTimeoutError, SetupError, UnavailableError
from cenote.naming import Names
from cenote.retry import Circuit
from cenote.sql.errors import FOREIGN, TIER, bad_url, is_read_only, translated
from cenote.sql.loader import Queries
from cenote.sql.parked import Parked

if TYPE_CHECKING:
    from cenote.config import RetryConfig, SqlConfig

CONNECT_TIMEOUT_S: Final = 10.0
_TRY_S: Final = 0.5  # the pause between two tries whether PostgreSQL is back …
_TRY_MS: Final = 3_000  # … and how long one may take
_LONG_S: Final = 1.0  # a call that was given up after this is a reason to try
ANSWER_TIMEOUT_S: Final = 15.0  # by our clock; the server's own statement_timeout, below, comes first
CANCEL_TIMEOUT_S: Final = 2.0  # a cancelled statement that has not ended by then costs its connection
SERVER_SETTINGS: Final = {
    "statement_timeout": "10s",
    "lock_timeout": "1s",
    "idle_in_transaction_session_timeout": "30s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "timezone": "UTC",
    "jit": "off",  # ours are short statements; compiling one costs more than it can win
}

log = logging.getLogger("cenote.sql")

# One traceback for each failed attempt to refill the pool: the call that needs a connection reports the same.
logging.getLogger("asyncpg.pool").addFilter(lambda record: "connection floor" not in record.getMessage())


class SqlIdentity(NamedTuple):
    """Which start of which history of which cluster answers: when a failover or a restored data directory lost
    commits, one of them has changed (rule 5)."""

    system_identifier: int
    timeline: int
    started_us: int

    def __str__(self) -> str:
        return f"{self.system_identifier}/{self.timeline}/{self.started_us}"


class PoolUse(NamedTuple):
    """How much of the pool is in use: connections lent and open, the most there may be; calls that wait for one, and
    for how long the first of them has waited."""

    used: int
    open: int
    most: int
    waiting: int
    waited_ms: int


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg ships no types
    """Knows when it was opened, and is reset on the server only after a stranger's SQL ran on it: the reset
    that asyncpg sends at each release costs a round trip, and our own statements leave nothing behind."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.opened_at = time.monotonic()
        self.strange = False

    def get_reset_query(self) -> str:
        if not self.strange:
            return ""
        self.strange = False
        return str(super().get_reset_query())


class Database:
    """A lazily opened pool on one PostgreSQL database, for one namespace.

    Every method raises `UnavailableError` (`PoolTimeoutError` when all connections are in use),
    `SetupError` (denied, schema behind, closed), `TransactionError`, `AlreadyExistsError` or `DataRefused`.
    A connection lost in the midst of a statement is `UnavailableError`, too, although the statement may
    have run: what writes outside of `transact` must be repeatable.
    """

    def __init__(
        self, config: "SqlConfig", retry: "RetryConfig", names: Names, application_name: str = "cenote"
    ) -> None:
        self.config = config
        self.retry = retry
        self.names = names
        self.queries = Queries(names)
        self.store_id: str | None = None  # whose database it must be; None: not known, or not asked
        self.server_version: tuple[int, int] | None = None  # of the server that the pool connected to first
        self._application_name = application_name
        self._opening = asyncio.Lock()
        self._pool: Any = None
        self._waits: dict[int, float] = {}  # since when each call waits for a connection, in their order
        self._wait = 0
        self._releasing: set[asyncio.Future[None]] = set()
        self._circuit = Circuit(config.outage_after_ms)
        self._trying: asyncio.Task[None] | None = None
        self._parked = Parked(lambda con: self._let_go(self._pool, con))
        self._closed = False
        self.timeouts = 0  # calls that got no connection in time, since the start of this process
        self.retries = 0  # transactions that were run again because PostgreSQL asked for it

    @asynccontextmanager
    async def connection(self, *, timeout_ms: float | None = None) -> AsyncIterator[asyncpg.Connection]:
        """A connection of the pool; asyncpg's errors inside the block leave it as ours.

        Waits for a free one at most `timeout_ms`, and at most `sql.acquire_timeout_s`.
        """
        async with self.lent(timeout_ms=timeout_ms) as con:
            try:
                yield con
            except FOREIGN as error:
                raise await self.mapped(error) from error

    @asynccontextmanager
    async def lent(
        self, *, timeout_ms: float | None = None, strange: bool = False
    ) -> AsyncIterator[asyncpg.Connection]:
        """The same for a block that may raise errors of its own: none inside it is touched.

        `strange`: SQL that is not ours will run; all session state is forgotten afterwards.
        """
        self._demand()
        pool = await self._opened()
        con, well = await self._acquired(pool, timeout_ms), False
        try:
            con._con.strange = strange  # the pool hands out a proxy; this is the connection behind it
            yield con
            well = True
        finally:
            await self._released(pool, con, well)

    async def mapped(self, error: BaseException) -> CenoteError:
        """Our error for one of asyncpg's, after doing what it asks for: `raise await db.mapped(error) from
        error`."""
        if is_read_only(error):
            await self.expire()
        return self._noted(translated(error))

    async def fetch(self, query: str, *args: object, timeout_ms: float | None = None) -> list[asyncpg.Record]:
        """All rows."""
        rows: list[asyncpg.Record] = await self._run(asyncpg.Connection.fetch, query, args, timeout_ms)
        return rows

    async def fetchrow(self, query: str, *args: object, timeout_ms: float | None = None) -> asyncpg.Record | None:
        """The first row, or None."""
        return await self._run(asyncpg.Connection.fetchrow, query, args, timeout_ms)

    async def fetchval(self, query: str, *args: object, timeout_ms: float | None = None) -> Any:
        """The first column of the first row, or None."""
        return await self._run(asyncpg.Connection.fetchval, query, args, timeout_ms)

    async def execute(self, query: str, *args: object, timeout_ms: float | None = None) -> str:
        """The server's command tag, such as `UPDATE 3`."""
        return str(await self._run(asyncpg.Connection.execute, query, args, timeout_ms))

    async def identity(self) -> SqlIdentity:
        """The primary's identity; a standby is `UnavailableError`, for it says nothing about the primary."""
        row = await self.fetchrow(self.queries["identity"])
        assert row is not None
        if row["in_recovery"]:
            await self.expire()
            raise UnavailableError("PostgreSQL is a standby: it cannot be written to", tier=TIER)
        return SqlIdentity(row["system_identifier"], row["timeline"], row["started_us"])

    def use(self) -> PoolUse:
        """How much of the pool is in use now; asks nobody."""
        pool, first = self._pool, next(iter(self._waits.values()), None)
        size = 0 if pool is None else pool.get_size()
        waited_ms = 0 if first is None else int((time.monotonic() - first) * 1000)
        used = 0 if pool is None else size - pool.get_idle_size() - len(self._parked)
        return PoolUse(used, size, self.config.pool_max, len(self._waits), waited_ms)

    async def expire(self) -> None:
        """Replace every connection by a new one before its next use."""
        if self._pool is not None:
            await self._pool.expire_connections()
            self._parked.clear()

    @property
    def out(self) -> bool:
        """Whether PostgreSQL has been away for `sql.outage_after_ms`: calls are refused at once."""
        return self._circuit.out

    async def close(self) -> None:
        """Close all connections, waiting for running statements at most `ANSWER_TIMEOUT_S`."""
        self._closed = True
        if self._trying is not None:
            self._trying.cancel()
            await asyncio.gather(self._trying, return_exceptions=True)
        self._parked.clear()
        async with self._opening:
            pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await pool.close()
        except FOREIGN:
            pool.terminate()

    async def _run(
        self,
        method: Callable[..., Awaitable[Any]],
        query: str,
        args: tuple[object, ...],
        timeout_ms: float | None,
    ) -> Any:
        # `connection()` without its two context managers, which a short read would notice.
        if self._circuit.failing:
            self._demand()
        return await self._ask(method, query, args, timeout_ms)

    async def _ask(
        self,
        method: Callable[..., Awaitable[Any]],
        query: str,
        args: tuple[object, ...],
        timeout_ms: float | None,
    ) -> Any:
        began = time.monotonic()
        try:
            pool = self._pool or await self._opened()
            con, well = await self._acquired(pool, timeout_ms), False
            try:
                found = await method(con._con, query, *args, timeout=None if timeout_ms is None else timeout_ms / 1000)
                self._circuit.answered()
                well = True
                return found
            except FOREIGN as error:
                raise await self.mapped(error) from error
            finally:
                await self._released(pool, con, well)
        except asyncio.CancelledError:
            if time.monotonic() - began > _LONG_S:  # a caller of less patience than the driver has
                self._noted(UnavailableError("PostgreSQL did not answer in time", tier=TIER))
            raise

    async def _opened(self) -> Any:
        if self._pool is not None:
            return self._pool
        async with self._opening:
            if self._closed:
                raise SetupError("this store is closed", tier=TIER)
            if self._pool is None:
                try:
                    self._pool = await self._new_pool()
                except FOREIGN as error:
                    raise self._noted(translated(error)) from error
                except ValueError:
                    raise bad_url() from None  # asyncpg's parser lets some through, and quotes what it read
        return self._pool

    async def _new_pool(self) -> Any:
        url = self.config.url.get_secret_value() if self.config.url else ""
        pool = await asyncpg.create_pool(
            url,
            min_size=self.config.pool_min,
            max_size=self.config.pool_max,
            max_inactive_connection_lifetime=self.config.idle_timeout_s,
            connection_class=_Connection,
            init=self._must_be_ours,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=ANSWER_TIMEOUT_S,
            target_session_attrs=None if "target_session_attrs" in url else "read-write",
            server_settings=SERVER_SETTINGS | {"application_name": self._application_name},
        )
        async with pool.acquire() as con:
            version = con.get_server_version()
            self.server_version = (version.major, version.minor or version.micro)  # asyncpg calls 18.6 18.0.6
        return pool

    async def _must_be_ours(self, con: asyncpg.Connection) -> None:
        """Each new connection: an address may lead to another PostgreSQL by now, and a process that never flushes has
        not compared the two before its first read (rule 8)."""
        if self.store_id is None:
            return
        try:
            found = await con.fetchval(self.queries["newest_store"])
        except asyncpg.UndefinedTableError:
            found = None
        if found is None or UUID(found) != UUID(self.store_id):
            named = f"store {found}" if found else "no store"
            raise SetupError(
                f"this PostgreSQL belongs to {named}, this process to store {self.store_id}",
                tier=TIER,
                hint="give it its own sql.url again, or join the two for good: cenote adopt",
            )

    async def _acquired(self, pool: Any, timeout_ms: float | None) -> Any:
        con = self._parked.take(self.config.max_lifetime_s)
        if con is not None:
            return con
        limit_s = self.config.acquire_timeout_s
        if timeout_ms is not None:
            limit_s = min(limit_s, timeout_ms / 1000)
        self._wait = wait = self._wait + 1
        self._waits[wait] = time.monotonic()
        try:
            async with asyncio.timeout(limit_s):
                con = await pool.acquire()
                while time.monotonic() - con._con.opened_at > self.config.max_lifetime_s:
                    await con.close()  # gives its place back to the pool
                    con = await pool.acquire()
                return con
        except FOREIGN as error:
            if isinstance(error, TimeoutError) and pool.get_size() - pool.get_idle_size() >= self.config.pool_max:
                self.timeouts += 1
                raise PoolTimeoutError(
                    f"all {self.config.pool_max} connections to PostgreSQL stayed in use for {limit_s:g} s",
                    tier=TIER,
                    hint="raise sql.pool_max, or hold transactions shorter",
                ) from error
            raise self._noted(translated(error)) from error
        finally:
            del self._waits[wait]

    def _noted(self, error: CenoteError) -> CenoteError:
        """Whether it was PostgreSQL that failed; from then on one task tries whether it is back."""
        if not isinstance(error, UnavailableError):
            self._circuit.answered()
            return error
        self._circuit.failed()
        self._keep_trying()
        return error

    def _keep_trying(self) -> None:
        if (self._trying is None or self._trying.done()) and not self._closed:
            self._trying = asyncio.create_task(self._try_again(), name="cenote-sql-circuit")

    def _demand(self) -> None:
        if self._circuit.out:
            self._keep_trying()
            error = UnavailableError(
                f"PostgreSQL {self._circuit.words}", tier=TIER, hint="is it up? see: cenote doctor"
            )
            error.lasting = True
            raise error

    async def _try_again(self) -> None:
        """Until an answer comes, by whoever asks."""
        while self._circuit.failing:
            await asyncio.sleep(_TRY_S)
            try:
                async with asyncio.timeout(2 * _TRY_MS / 1000):
                    await self._ask(asyncpg.Connection.fetchval, "SELECT 1", (), _TRY_MS)
            except CenoteError:
                pass
            except Exception as error:  # noqa: BLE001 - whatever asyncpg meets in a lost connection, trying goes on
                log.warning("a try whether PostgreSQL is back ended with %r", error)

    async def _released(self, pool: Any, con: Any, well: bool) -> None:
        if well and not self._waits and not self._closed and self._parked.put(con):
            return
        # On failure asyncpg terminates the connection and frees its place; what the caller got, or the error
        # that is on its way to it, says more than this one.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            self._let_go(pool, con)  # a caller whose time is over does not wait until PostgreSQL has heard of it
            return
        with suppress(*FOREIGN):
            await pool.release(con, timeout=CANCEL_TIMEOUT_S)

    def _let_go(self, pool: Any, con: Any) -> None:
        release = asyncio.ensure_future(pool.release(con, timeout=CANCEL_TIMEOUT_S))
        self._releasing.add(release)
        release.add_done_callback(self._gone)

    def _gone(self, release: asyncio.Future[None]) -> None:
        self._releasing.discard(release)
        if not release.cancelled():
            release.exception()  # retrieved: see above
