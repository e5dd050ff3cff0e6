"""What `doctor` looks at in PostgreSQL: reachable, credentials, version, rights, schema, clock, dead letters,
vectors."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from cenote.cli.examine_kv import CLOCK_MS_MAX
from cenote.cli.findings import Finding, failed, ok, skipped, warning
from cenote.config import Config
from cenote.embedded.binaries import POSTGRES_MAJOR_MIN
from cenote.errors import CenoteError, SetupError
from cenote.sql.loader import SCHEMAS
from cenote.sql.migrate import pending
from cenote.sql.nearness import NearTables
from cenote.sql.pool import Database
from cenote.sql.rows import EpochRow
from cenote.sql.state import StateTable

_RIGHTS = """
SELECT current_user AS role, current_database() AS database,
       has_database_privilege(current_database(), 'CREATE') AS may_create,
       pg_is_in_recovery() AS standby, current_setting('server_version') AS version,
       (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms
"""
_TABLES = """
SELECT coalesce(bool_and(has_table_privilege(c.oid, 'SELECT, INSERT, UPDATE, DELETE')), true)
  FROM pg_class AS c
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = $1 AND c.relkind = 'r'
"""


@dataclass
class SqlFacts:
    """What SQL says of the store."""

    epochs: list[EpochRow] = field(default_factory=list)
    known: bool = False
    home: str | None = None
    high_water: int = 0
    commits: int = 0


class ExamineSql:
    """One look; `facts` are filled while the findings are iterated."""

    def __init__(self, config: Config | None) -> None:
        self._config = config
        self.facts = SqlFacts()

    async def findings(self) -> AsyncIterator[Finding]:
        """In the order in which one thing stands on another; ends where nothing more can be looked at."""
        config = self._config
        if config is None or config.sql.url is None:
            yield skipped("postgresql", "does not run")
            return
        sql = config.sql.model_copy(update={"pool_min": 0, "pool_max": 1})
        db = Database(sql, config.retry, config.names, "cenote-doctor")
        try:
            async for finding in self._within(config, db):
                yield finding
        finally:
            await db.close()

    async def _within(self, config: Config, db: Database) -> AsyncIterator[Finding]:
        try:
            row = await db.fetchrow(_RIGHTS)
        except CenoteError as error:
            yield _unreachable(config, error)
            return
        assert row is not None
        yield _version(row["version"], standby=row["standby"])
        apart_ms = row["now_ms"] - time.time_ns() // 1_000_000
        clock = f"{apart_ms:+} ms from this machine's"
        if abs(apart_ms) > CLOCK_MS_MAX:
            yield warning(
                "clock of sql", clock, "synchronise the clocks (chrony, ntpd); expiry in SQL follows this one"
            )
        else:
            yield ok("clock of sql", clock)
        missing = None
        try:
            missing = await pending(db)
        except CenoteError as error:
            yield failed("schema", str(error.args[0]), error.hint or "see: cenote migrate --dry-run")
        yield await _rights(db, row, needs_create=bool(missing))
        if missing is None:
            return
        if missing:
            behind = f"behind by {len(missing)} migrations: {', '.join(f'{m.number:04} {m.name}' for m in missing)}"
            yield failed("schema", behind, "cenote migrate (the SQL for a DBA: cenote migrate --print)")
            return
        yield ok("schema", f"{db.names.schema_name('agents')} is up to date")
        yield await self._letters(db)
        yield await _vectors(config, db)

    async def _letters(self, db: Database) -> Finding:
        table = StateTable(db, db.names)
        try:
            facts = self.facts
            facts.epochs, (_, facts.home) = await table.epochs(), await table.known()
            flushed = await table.high_water(facts.epochs[-1].epoch) if facts.epochs else None
            facts.high_water = flushed.sequence if flushed else 0
            facts.commits, facts.known = (await table.head()).number, True
            letters = await table.dead_letters(0, 1_000)
        except CenoteError as error:
            return failed("dead letters", str(error.args[0]), error.hint or "may this role read the tables?")
        if letters:
            return warning("dead letters", f"{len(letters)} writes were refused", "cenote dead-letters list")
        return ok("dead letters", "none")


async def _vectors(config: Config, db: Database) -> Finding:
    """Both are as they should be: the exact search is slower where there are many embeddings, and never wrong."""
    tables = NearTables(db)
    try:
        server = await tables.server()
        spaces = await tables.spaces(config.knowledge.vector_index_rows)
    except CenoteError as error:
        return failed("vectors", str(error.args[0]), error.hint or "may this role read the tables?")
    if config.knowledge.vector_index == "off":
        return ok("vectors", "searched exactly: knowledge.vector_index is off")
    if not spaces:
        has = f"pgvector {server.installed or server.available}" if server.available else "no pgvector here"
        return ok("vectors", f"searched exactly: no namespace has {config.knowledge.vector_index_rows} ({has})")
    if server.why_not is not None:
        return ok("vectors", f"searched exactly: {server.why_not}")
    ready = sum(space.ready for space in spaces)
    return ok("vectors", f"pgvector {server.installed}: {ready} of {len(spaces)} large namespaces have their index")


def _unreachable(config: Config, error: CenoteError) -> Finding:
    message = str(error.args[0])
    if isinstance(error, SetupError):
        return failed(
            "postgresql",
            message,
            "mend user, password or database in sql.url: --sql postgresql://user:password@host/database",
        )
    return failed(
        "postgresql",
        f"{message} ({config.sql.url})",
        "is it running there? mend sql.url: --sql postgresql://host:port/database",
    )


def _version(version: str, *, standby: bool) -> Finding:
    if int(version.partition(".")[0]) < POSTGRES_MAJOR_MIN:
        return failed("postgresql", f"{version} is too old", f"upgrade to PostgreSQL {POSTGRES_MAJOR_MIN} or newer")
    if standby:
        return failed("postgresql", f"{version}, a standby: it cannot be written to", "name the primary in sql.url")
    return ok("postgresql", version)


async def _rights(db: Database, row: dict[str, object], *, needs_create: bool) -> Finding:
    role, database = row["role"], row["database"]
    prepared = await db.fetchval("SELECT to_regnamespace($1) IS NOT NULL", db.names.schema("agents"))
    if needs_create and not prepared and not row["may_create"]:
        found = f"{role} may not create schemas in {database}"
        return failed("rights", found, f"GRANT CREATE ON DATABASE {database} TO {role}, or see cenote migrate --print")
    for name in SCHEMAS:
        schema = db.names.schema(name)
        if not await db.fetchval(_TABLES, db.names.schema_name(name)):
            found = f"{role} may not read and write the tables of schema {schema}"
            to_type = f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}"
            return failed("rights", found, to_type)
    return ok("rights", f"role {role} in database {database}")
