"""Making and dropping an index beside those who write, which cannot be done in a transaction."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from cenote.naming import Names
from cenote.sql.locks import advisory_key

_BUILD_S: Final = 24 * 3_600


@asynccontextmanager
async def alone(con: asyncpg.Connection, names: Names, purpose: str) -> AsyncIterator[bool]:
    """Whether nobody else makes or drops these indexes meanwhile: two that wait for each other's snapshots would be a
    deadlock. The lock is the session's; whoever is cut off ends it."""
    key = advisory_key(names, purpose)
    is_alone = bool(await con.fetchval("SELECT pg_try_advisory_lock($1)", key))
    try:
        yield is_alone
    except BaseException:
        con.terminate()
        raise
    if is_alone:
        await con.execute("SELECT pg_advisory_unlock($1)", key)


async def patiently(con: asyncpg.Connection, statement: str, *args: object, lock_timeout: str) -> None:
    """Run what takes as long as it takes."""
    await con.execute(f"SET statement_timeout = 0; SET lock_timeout = '{lock_timeout}'")
    try:
        await con.execute(statement, *args, timeout=_BUILD_S)
    finally:
        if not con.is_closed():
            await con.execute("RESET statement_timeout; RESET lock_timeout")
