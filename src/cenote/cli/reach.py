"""How a command reaches the store: opened, or only its SQL, or only what is already running.

Who flushes: a command that writes takes part in flushing, so that its write reaches PostgreSQL even when no other
process runs; it waits for that at most `flush.drain_ms`. A command that only looks never flushes, and never opens a
PostgreSQL connection that it does not need.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cenote.cli.output import note, printable
from cenote.config import TEMPORARY, Config
from cenote.embedded import inspect
from cenote.embedded.state import DataDir, Name
from cenote.engine.adoption import Ground
from cenote.engine.machines import Machines
from cenote.errors import SetupError
from cenote.kv.link import Link
from cenote.opening import open_machines, start_servers, with_servers
from cenote.sections import Url
from cenote.sql.migrate import migrate
from cenote.sql.pool import Database
from cenote.sql.state import StateTable
from cenote.store import Store

T = TypeVar("T")


class Reach(NamedTuple):
    """An open store with its machines."""

    store: Store
    machines: Machines


def wait(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; warnings of the store go to stderr, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logger = logging.getLogger("cenote")
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        return asyncio.run(work)
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


class _OneLine(logging.Formatter):
    """`warning: what happened`."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {printable(record.getMessage())}"


def embedded_names(config: Config) -> list[Name]:
    """Which servers are ours to start, because no URL names them."""
    names: list[Name] = []
    if config.kv.url is None:
        names.append("nats")
    if config.sql.url is None:
        names.append("postgres")
    return names


def data_dir(config: Config) -> Path | None:
    """Where embedded servers keep their data; None for a temporary directory, which no other process can name."""
    return None if config.embedded.data_dir == TEMPORARY else DataDir.locate(config.embedded.data_dir).path


def running(config: Config) -> dict[str, Any] | None:
    """What `inspect` says of our embedded servers, if all that the configuration needs run; else None."""
    directory = data_dir(config)
    found = None if directory is None else inspect(directory)
    if found is None or not all((found.get(name) or {}).get("alive") for name in embedded_names(config)):
        return None
    return found


def must_run(config: Config) -> None:
    """For commands that look and must not start anything. SetupError when embedded servers do not run."""
    if embedded_names(config) and running(config) is None:
        where = data_dir(config)
        raise SetupError(
            "no servers run" if where is None else f"no servers run in {where}", hint="start them: cenote up --detach"
        )


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Reach]:
    """The store, open; embedded servers are started for the time of the command when nobody runs them."""
    if embedded_names(config) and sys.stderr.isatty() and running(config) is None:
        note("starting servers for this command alone; `cenote up --detach` keeps them running")
    machines, servers = await open_machines(config)
    store = Store(config, machines, servers)
    try:
        yield Reach(store, machines)
    finally:
        await asyncio.shield(store.aclose())


@asynccontextmanager
async def both_sides(config: Config) -> AsyncIterator[Ground]:
    """A connection to each server, nothing opened, compared or created; embedded servers run meanwhile."""
    servers = await start_servers(config) if embedded_names(config) else None
    try:
        effective = config if servers is None else with_servers(config, servers)
        link = Link(effective.kv, name="cenote-cli")
        db = Database(effective.sql, config.retry, config.names, "cenote-cli")
        await link.connect()
        try:
            yield Ground(link, StateTable(db, config.names), effective)
        finally:
            await link.close()
            await db.close()
    finally:
        if servers is not None:
            await servers.release()


@asynccontextmanager
async def sql_only(config: Config, *, current: bool = True) -> AsyncIterator[StateTable]:
    """The tables alone, KV untouched.

    Args:
        config: the configuration.
        current: bring the schema up to date first where that is the policy, and refuse it where it is behind.
    """
    servers = await start_servers(config) if embedded_names(config) else None
    try:
        sql = config.sql
        if servers is not None and servers.sql_dsn is not None:
            sql = sql.model_copy(update={"url": Url(servers.sql_dsn)})
        db = Database(sql, config.retry, config.names, "cenote-cli")
        try:
            if current:
                await migrate(db, "auto" if config.migrates else "check")
            yield StateTable(db, config.names)
        finally:
            await db.close()
    finally:
        if servers is not None:
            await servers.release()
