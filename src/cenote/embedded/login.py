"""Whether PostgreSQL answers to our role, and making that role and its database when it does not know them
yet."""

import asyncio
import time

import asyncpg

from cenote.embedded.postgres_server import DATABASE, ROLE, SUPERUSER
from cenote.embedded.process import Process, alive
from cenote.embedded.state import State
from cenote.embedded.waiting import blocking
from cenote.errors import ServerStartError

_UNKNOWN = (
    asyncpg.InvalidPasswordError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)
# in recovery, not listening yet, or killed while we talked to it (asyncpg then finds itself in a wrong state)
_NOT_NOW = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


def dsn(state: State) -> str:
    return f"postgresql://{ROLE}:{state.sql_password}@127.0.0.1:{state.postgres_port}/{DATABASE}?sslmode=disable"


async def log_in(state: State, running: Process, seconds: float) -> str | None:
    """Wait until the server takes our role, which is made when need be: its version, None when it does not
    answer."""
    deadline = time.monotonic() + seconds
    must_set_up = is_set_up = False
    while await blocking(alive, running) and time.monotonic() < deadline:
        try:
            if must_set_up:
                await _set_up(state)
                must_set_up, is_set_up = False, True
            return await _version(state)
        except _UNKNOWN:
            if is_set_up:
                return None
            must_set_up = True
        except asyncpg.TooManyConnectionsError:
            return ""  # it lives and knows us
        except _NOT_NOW:
            await asyncio.sleep(0.02)
    return None


async def _version(state: State) -> str:
    link = await _connect(state, ROLE, state.sql_password, DATABASE)
    try:
        return str(await link.fetchval("SHOW server_version")).split()[0]
    finally:
        await link.close()


async def _set_up(state: State) -> None:
    """Make the role and the database, or give the role its password again. Runs once for each cluster, or
    again after a crash in the middle. The passwords are url-safe base64: nothing to quote."""
    try:
        link = await _connect(state, SUPERUSER, state.superuser_password, "postgres")
    except _UNKNOWN as error:
        raise ServerStartError(
            "PostgreSQL does not take the password in state.json",
            hint="stop it, remove state.json and start again: new passwords are made then",
        ) from error
    try:
        known = await link.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", ROLE)
        verb = "ALTER" if known else "CREATE"
        await link.execute(f"{verb} ROLE {ROLE} LOGIN PASSWORD '{state.sql_password}'")
        if not await link.fetchval("SELECT true FROM pg_database WHERE datname = $1", DATABASE):
            await link.execute(f"CREATE DATABASE {DATABASE} OWNER {ROLE}")
    finally:
        await link.close()
    await _add_vector(state)


async def _add_vector(state: State) -> None:
    """pgvector may only be added by a superuser; our role uses it where the programs bring it."""
    link = await _connect(state, SUPERUSER, state.superuser_password, DATABASE)
    try:
        if await link.fetchval("SELECT true FROM pg_available_extensions WHERE name = 'vector'"):
            await link.execute("CREATE EXTENSION IF NOT EXISTS vector")
    finally:
        await link.close()


async def _connect(state: State, user: str, password: str, database: str) -> asyncpg.Connection:
    return await asyncpg.connect(
        host="127.0.0.1",
        port=state.postgres_port,
        user=user,
        password=password,
        database=database,
        ssl=False,
        timeout=5,
        command_timeout=30,
    )
