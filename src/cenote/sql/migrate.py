"""Bring the schema to its head: numbered SQL files, forward only, each in a transaction of its own; where there is
nothing yet, all in one.

`agents.migrations` is authoritative for what a database has; the files for what it should have. Any number
of processes may migrate at once: each file is applied under an advisory lock, after looking again. An older
process may use a newer schema as long as `agents.meta` says that its head is not below `schema_min_reader`
(rolling upgrades). A migration that raises it takes the guard from whoever flushes: each has to begin anew, where it is
asked whether it knows the schema.

A file begins with `-- phase: pre` (before the new code runs, the old code must live with it) or `-- phase:
post` (once no old process is left), and with `-- min_reader: n`: the lowest head whose code can use the
schema after it.
"""

import re
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Final, Literal, NamedTuple

from cenote.errors import SetupError
from cenote.naming import Names
from cenote.sql.errors import TIER
from cenote.sql.loader import SCHEMAS, Queries, placed
from cenote.sql.locks import advisory_key
from cenote.sql.pool import Database
from cenote.sql.transaction import Isolation, Transaction, transact

Policy = Literal["auto", "check"]
Phase = Literal["pre", "post"]

_FILE: Final = re.compile(r"(\d{4})_(\w+)\.sql")
_HEAD: Final = re.compile(r"-- phase: (pre|post)\n-- min_reader: (\d+)\n")
_ANSWER_MS: Final = 24 * 3_600_000  # building an index may take hours
_LIMITS: Final = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0"


class Migration(NamedTuple):
    """One file. `text` still has its placeholders, so that its checksum is the same in every namespace."""

    number: int
    name: str
    phase: Phase
    min_reader: int
    text: str

    @property
    def sha256(self) -> str:
        """Over the file's text."""
        return sha256(self.text.encode()).hexdigest()


@cache
def known() -> tuple[Migration, ...]:
    """All migrations this version of cenote knows, in order."""
    found = []
    for file in sorted(files("cenote.sql").joinpath("migrations").iterdir(), key=lambda f: f.name):
        named = _FILE.fullmatch(file.name)
        if named is None:
            continue
        text = file.read_text(encoding="utf-8")
        head = _HEAD.match(text)
        assert head is not None, f"{file.name} does not begin with its phase and its min_reader"
        phase: Phase = "pre" if head[1] == "pre" else "post"
        found.append(Migration(int(named[1]), named[2], phase, int(head[2]), text))
    assert [m.number for m in found] == list(range(1, len(found) + 1)), "migrations are numbered without gaps"
    return tuple(found)


async def migrate(db: Database, policy: Policy, *, phase: Phase | None = None) -> list[Migration]:
    """Apply what is pending (`auto`), or make sure that nothing the code needs is (`check`).

    Args:
        db: the database.
        policy: `sql.migrate`.
        phase: with `auto`, stop before the first migration of the other phase; None applies all.

    Returns:
        What this call applied.

    Raises:
        SetupError: schema behind (`check`), too new for this code, or not what its files say.
    """
    applied = await _applied(db)
    missing = [migration for migration in known() if migration.number not in applied]
    if policy == "check":
        if any(migration.phase == "pre" for migration in missing):
            raise SetupError(
                f"the schema of namespace {db.names.namespace!r} is behind: it is at {max(applied, default=0):04},"
                f" this cenote needs {missing[-1].number:04}",
                tier=TIER,
                hint="run: cenote migrate",
            )
        return []
    if not applied and phase is None:
        return list(known()) if await _create(db) else []
    done = []
    for migration in missing:
        if phase is not None and migration.phase != phase:
            break
        if await _apply(db, migration):
            done.append(migration)
    return done


async def pending(db: Database) -> list[Migration]:
    """What the database lacks, in order. SetupError when what it has does not fit this code."""
    applied = await _applied(db)
    return [migration for migration in known() if migration.number not in applied]


async def head(db: Database) -> int:
    """The number of the newest migration that the database has. SetupError as `pending`."""
    return max(await _applied(db), default=0)


async def plan(db: Database) -> list[str]:
    """What `migrate` would do: a line for each pending migration."""
    return [f"{m.number:04} {m.name} ({m.phase}, {m.sha256[:12]})" for m in await pending(db)]


def print_sql(names: Names, *, after: int = 0) -> str:
    """All migrations above number `after` as one script for psql, which leaves nothing for `migrate` to
    do."""
    queries = Queries(names)
    parts = [
        "\\set ON_ERROR_STOP on",
        "BEGIN;",
        f"SELECT pg_advisory_xact_lock({advisory_key(names, 'migrate')});",
    ]
    parts += [f"CREATE SCHEMA IF NOT EXISTS {names.schema(schema)};" for schema in SCHEMAS]
    parts.append(queries["create_migrations"] + ";")
    parts += [_script(queries, names, after), f"{queries['unbind_flushes']};", "COMMIT;"]
    return "\n\n".join(parts) + "\n"


def _script(queries: Queries, names: Names, after: int = 0) -> str:
    """The migrations above number `after`, each followed by its record."""
    parts = []
    for m in [each for each in known() if each.number > after]:
        values = f"{m.number}, '{m.name}', '{m.phase}', '{m.sha256}'"
        record = queries["record_migration"].replace("$1, $2, $3, $4", values)
        reader = queries["raise_min_reader"].replace("$1", f"'{m.min_reader}'")
        parts += [f"-- {m.number:04}_{m.name}.sql", placed(m.text, names), f"{record};", f"{reader};"]
    return "\n\n".join(parts)


async def _create(db: Database) -> bool:
    """Make the whole schema where there is none, all or nothing, in one go: a tenth of a second is long for whoever
    opens a store the first time. False when another process was faster."""

    async def run(tx: Transaction) -> bool:
        await _begin(tx, db)
        if await tx.fetch(db.queries["applied_migrations"]):
            return False
        await tx.execute(_script(db.queries, db.names), timeout_ms=_ANSWER_MS)
        return True

    return await transact(db, run, isolation=Isolation.READ_COMMITTED)


async def _applied(db: Database) -> dict[int, str]:
    """Number → checksum of what the database has, checked against the files."""
    exists = await db.fetchval(db.queries["relation_exists"], f"{db.names.schema('agents')}.migrations")
    if not exists:
        return {}
    applied = {row["number"]: row["sha256"] for row in await db.fetch(db.queries["applied_migrations"])}
    ours = known()
    for migration in ours:
        if applied.get(migration.number, migration.sha256) != migration.sha256:
            raise SetupError(
                f"migration {migration.number:04} of the database is not the {migration.name} of this cenote",
                tier=TIER,
                hint="was a migration edited after it was applied? restore the release it came from",
            )
    head = ours[-1].number
    if applied and max(applied) > head:
        min_reader = int(await db.fetchval(db.queries["schema_min_reader"]))
        if min_reader > head:
            raise SetupError(
                f"the schema ({max(applied):04}) is too new: it needs a cenote that knows {min_reader:04},"
                f" this one knows {head:04}",
                tier=TIER,
                hint="upgrade this process: pip install --upgrade cenote",
            )
    return applied


async def _apply(db: Database, migration: Migration) -> bool:
    """Apply one migration, unless another process was faster."""

    async def run(tx: Transaction) -> bool:
        await _begin(tx, db)
        if await tx.fetchval(db.queries["migration_applied"], migration.number):
            return False
        await tx.execute(placed(migration.text, db.names), timeout_ms=_ANSWER_MS)
        await tx.execute(
            db.queries["record_migration"],
            migration.number,
            migration.name,
            migration.phase,
            migration.sha256,
        )
        if await tx.fetchval(db.queries["raise_min_reader"], str(migration.min_reader)):
            await tx.execute(db.queries["unbind_flushes"])
        return True

    return await transact(db, run, isolation=Isolation.READ_COMMITTED)


async def _begin(tx: Transaction, db: Database) -> None:
    """Alone with the schemas and the table of migrations. CREATE SCHEMA asks for the right to create even where the
    schema exists, which a role that a DBA prepared it for may not have; hence the look before."""
    await tx.execute(_LIMITS)
    key = advisory_key(db.names, "migrate")
    await tx.execute("SELECT pg_advisory_xact_lock($1)", key, timeout_ms=_ANSWER_MS)
    schemas = {db.names.schema_name(schema): db.names.schema(schema) for schema in SCHEMAS}
    for missing in await tx.fetch(db.queries["schemas_missing"], list(schemas)):
        await tx.execute(f"CREATE SCHEMA IF NOT EXISTS {schemas[missing['s']]}")
    if not await tx.fetchval(db.queries["relation_exists"], f"{db.names.schema('agents')}.migrations"):
        await tx.execute(db.queries["create_migrations"])
