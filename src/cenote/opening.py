"""Opening a store: servers, then connections, then the schema, then the machines. What fails half-way is undone."""

import logging
from contextlib import AsyncExitStack

from pydantic import SecretStr

from cenote.config import Config
from cenote.embedded import NatsAddress, Servers, acquire
from cenote.engine.belonging import agree, belongs
from cenote.engine.core import Core
from cenote.engine.machines import Machines, build
from cenote.engine.recovery import recover
from cenote.engine.writer_id import new_writer_id
from cenote.errors import OutcomeUnknownError, UnavailableError
from cenote.kv.link import Link
from cenote.naming import AGENT_STATE, DEFAULT, Names
from cenote.repositories import chores
from cenote.retry import Backoff
from cenote.routing import routes
from cenote.sections import KvConfig, Url
from cenote.sql.migrate import migrate
from cenote.sql.pool import Database
from cenote.sql.state import StateTable

log = logging.getLogger("cenote")


async def open_machines(config: Config) -> tuple[Machines, Servers | None]:
    """Everything that an open store consists of, running.

    Raises:
        ServerStartError: an embedded server cannot be started.
        SetupError: bad configuration, a schema behind, a bucket that would lose data, a foreign database.
        UnavailableError: a server given by URL cannot be reached, or an embedded one dies again and again.
    """
    routes(config.routes.override)  # before anything is started: what is wrong in it is said at once
    if config.kv.url is not None and config.sql.url is not None:
        return await _connected(config, None), None
    async with AsyncExitStack() as undo:
        servers = await start_servers(config)
        undo.push_async_callback(servers.release)
        machines = await _patiently_connected(config, servers)
        undo.pop_all()
    return machines, servers


async def _patiently_connected(config: Config, servers: Servers) -> Machines:
    """An embedded server that dies while we connect is back within a second: begin again, at its new address."""
    backoff = Backoff(config.retry, config.kv.deadline_ms)
    while True:
        try:
            return await _connected(with_servers(config, servers), servers)
        except (UnavailableError, OutcomeUnknownError) as error:
            await backoff.pause(error)


async def _connected(config: Config, servers: Servers | None) -> Machines:
    """Connections, the schema, the machines; all idempotent."""
    async with AsyncExitStack() as undo:
        names = Names(config.namespace)
        link = Link(config.kv, name="cenote")
        await link.connect()
        undo.push_async_callback(link.close)
        if servers is not None:
            link.on_disconnect.append(servers.poke)
        db = Database(config.sql, config.retry, names)
        undo.push_async_callback(db.close)
        core = Core(config, names, link, db, new_writer_id())
        undo.push_async_callback(core.close)
        if config.telemetry.traces:
            from cenote.engine.spans import Spans  # OpenTelemetry is imported by those who want it

            core.spans = Spans(config)
        core.owned = servers is not None and servers.nats is not None
        if config.migrates or config.flush.enabled:
            await _checked(core)
        else:
            await core.start()
        machines = build(core)
        core.chores += chores(machines)
        if machines.flusher is not None:
            machines.flusher.start()
        undo.pop_all()
    return machines


async def _checked(core: Core) -> None:
    """Start the core with a look at the database: do the two belong together, does the schema fit? One connection that
    is closed at once: of many processes with one store most never ask SQL anything else."""
    config, names = core.config, core.names
    db = Database(config.sql.model_copy(update={"pool_min": 1}), config.retry, names)
    try:
        table = StateTable(db, names)
        sql_known = False
        try:
            await agree(core.link, table, names, config.kv.deadline_ms)
            await migrate(db, "auto" if config.migrates else "check")
            sql_known = True
        except UnavailableError as error:
            # KV alone takes writes; a store that KV does not know yet fails below, for it needs SQL to begin.
            log.warning("PostgreSQL cannot be reached, so its schema was not checked: %s", error)
        await core.start()
        if sql_known:
            await belongs(table, core.epochs, core.stream)
    finally:
        await db.close()


async def start_servers(config: Config) -> Servers:
    """Start or attach to the embedded servers that the configuration asks for. Raises ServerStartError."""
    embedded_kv, embedded_sql = config.kv.url is None, config.sql.url is None

    async def drain(address: NatsAddress, dsn: str) -> None:
        await _recover_all(config, address, dsn)

    return await acquire(
        data_dir=config.embedded.data_dir,
        nats=embedded_kv,
        postgres=embedded_sql,
        nats_bin=config.embedded.nats_bin,
        postgres_bin=config.embedded.postgres_bin,
        sync_interval_ms=config.kv.sync_interval_ms,
        recover=drain,
        sql_dsn=None if config.sql.url is None else config.sql.url.get_secret_value(),
    )


def with_servers(config: Config, servers: Servers) -> Config:
    """The configuration with the addresses of the servers that were started."""
    kv, sql = config.kv, config.sql
    if servers.nats is not None:
        kv = _at(config, servers.nats)
    if servers.sql_dsn is not None:
        sql = sql.model_copy(update={"url": Url(servers.sql_dsn), "migrate": config.sql.migrate or "auto"})
    return config.model_copy(update={"kv": kv, "sql": sql})


def _at(config: Config, address: NatsAddress) -> KvConfig:
    update = {"url": Url(address.url), "user": address.user, "password": SecretStr(address.password)}
    return config.kv.model_copy(update=update)


async def _recover_all(config: Config, address: NatsAddress, dsn: str) -> None:
    """Drain the streams of every namespace in a store that did not stop cleanly."""
    link = Link(_at(config, address), name="cenote-recovery")
    await link.connect()
    try:
        listing = await link.api("STREAM.NAMES", {"subject": "$KV.>"})
        for stream in listing.get("streams") or []:
            if not stream.endswith(AGENT_STATE):
                continue
            prefix = stream.removeprefix("KV_").removesuffix(AGENT_STATE)
            names = Names(prefix.removesuffix("_") or DEFAULT)
            sql = config.sql.model_copy(update={"url": Url(dsn)})
            db = Database(sql, config.retry, names)
            try:
                await migrate(db, "auto")
                await recover(link, StateTable(db, names), names, config)
            finally:
                await db.close()
    finally:
        await link.close()
