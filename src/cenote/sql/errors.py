"""The one place where asyncpg's errors become ours.

Values never leak: PostgreSQL puts them into DETAIL and CONTEXT, and asyncpg into its own argument errors,
so those are removed from the chained error as well, before a traceback can print them.
SQLSTATE classes: PostgreSQL, appendix A.
"""

from typing import Final

import asyncpg

from cenote.errors import (
    AlreadyExistsError,
    CenoteError,
    RejectedError,
    SetupError,
    TransactionError,
    UnavailableError,
)

TIER: Final = "RELATIONAL_DB"

FOREIGN: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,  # TimeoutError is one
)
"""What a call into asyncpg may raise, cancellation apart."""

_AGAIN = {"40001", "40P01", "55P03"}  # lock_timeout is as short as deadlock_timeout: either may end a deadlock
_BEHIND = {"42P01", "3F000", "42703", "42883"}  # undefined table, schema, column, function
_DENIED = {"42501", "28000", "28P01", "3D000"}
_REFUSED = {"23502", "23514", "54000", "54001"}  # not null, check, program limit, stack depth
_LOST_CLASSES = {"08", "53", "57", "58"}  # connection, resources, operator intervention, system
_LOST = {"25P03", "25P04", "25006"}  # the session's or transaction's time is over, read-only server


class DataRefused(RejectedError):
    """PostgreSQL refuses the data itself; trying again cannot help. `.sqlstate` says why (None: refused before
    it was sent). In a batch, bisection finds the row; a poisoned row must never hold up its neighbours
    (I13)."""

    sqlstate: str | None = None


def translated(error: BaseException) -> CenoteError:
    """Our error for one of asyncpg's; chain it with `raise translated(error) from error`."""
    if isinstance(error, CenoteError):
        return error
    if isinstance(error, asyncpg.PostgresError):
        return _from_server(error)
    if isinstance(error, asyncpg.exceptions.ClientConfigurationError):
        error.args = ("bad URL",)
        return bad_url()
    if isinstance(error, TimeoutError):
        return UnavailableError("PostgreSQL did not answer in time", tier=TIER)
    if isinstance(error, FOREIGN):
        return UnavailableError(f"PostgreSQL cannot be reached: {_words(error)}", tier=TIER)
    return CenoteError(f"PostgreSQL: {type(error).__name__}", tier=TIER)


def bad_url() -> SetupError:
    """The URL is not quoted: what stands in the wrong place may be the password."""
    return SetupError(
        "sql.url cannot be read",
        tier=TIER,
        hint="postgresql://user:password@host:port/database, with the password percent-encoded",
    )


def is_read_only(error: BaseException) -> bool:
    """25006: a demoted primary answers reads for ever while each write fails; its connections must go."""
    return isinstance(error, asyncpg.ReadOnlySQLTransactionError)


def _from_server(error: asyncpg.PostgresError) -> CenoteError:
    state: str = getattr(error, "sqlstate", None) or "?????"
    error.detail = error.context = None
    if state[:2] == "22" or state in _REFUSED:
        # 22P02's own words quote the value; so do asyncpg's, which raises 22000 for what it cannot encode.
        error.args = (f"SQLSTATE {state}",)
        error.__cause__ = error.__context__ = None
        refused = DataRefused(f"PostgreSQL refuses a value ({state} {type(error).__name__})", tier=TIER)
        refused.sqlstate = state
        return refused
    said = f"{_words(error)} ({state})"
    if state in _AGAIN:
        return TransactionError(f"PostgreSQL asks to run the transaction again: {said}", tier=TIER)
    if state == "23505":
        return AlreadyExistsError(f"it exists already: {said}", tier=TIER)
    if state in _BEHIND:
        return SetupError(f"the schema does not fit: {said}", tier=TIER, hint="run: cenote migrate")
    if state in _DENIED:
        return SetupError(f"PostgreSQL denies access: {said}", tier=TIER)
    if state[:2] in _LOST_CLASSES or state in _LOST:
        return UnavailableError(f"PostgreSQL is not available: {said}", tier=TIER)
    return CenoteError(f"PostgreSQL: {said}", tier=TIER)


def _words(error: BaseException) -> str:
    return str(error.args[0] if error.args and isinstance(error.args[0], str) else error) or type(error).__name__
