"""Migrations: at once, once each, checked, printable, and by a role that owns nothing but its schema."""

import asyncio
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from pg_server import GUARD, STORE, PgServer, beat, database, pg, row

from cenote.config import Names
from cenote.errors import SetupError
from cenote.sql import migrate as migrations
from cenote.sql.loader import SCHEMAS
from cenote.sql.migrate import Migration, known, migrate, pending, plan, print_sql
from cenote.sql.pool import Database
from cenote.sql.rows import NewEpoch
from cenote.sql.state import StateTable

__all__ = ["pg"]  # fixtures

PROCESS = """
import asyncio, sys
from cenote.config import Config, Names
from cenote.sql.migrate import migrate
from cenote.sql.pool import Database

async def main(url, namespace):
    config = Config(sql={"url": url})
    db = Database(config.sql, config.retry, Names(namespace))
    sys.stdin.readline()
    print(len(await migrate(db, "auto")))
    await db.close()

asyncio.run(main(*sys.argv[1:]))
"""


def test_three_processes_at_once_apply_each_migration_once(pg: PgServer) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, pg.url(), "Three"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    applied = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum(applied) == len(known())


async def test_many_tasks_at_once_too_and_again_is_nothing(pg: PgServer) -> None:
    databases = [database(pg, Names("Tasks")) for _ in range(6)]
    applied = await asyncio.gather(*(migrate(each, "auto") for each in databases))
    assert sum(len(done) for done in applied) == len(known())
    assert await migrate(databases[0], "auto") == []
    for each in databases:
        await each.close()


async def test_a_schema_behind_is_refused_with_the_way_out(pg: PgServer) -> None:
    db = database(pg)
    with pytest.raises(SetupError, match=r"behind.*run: cenote migrate"):
        await migrate(db, "check")
    lines = await plan(db)
    assert [line.split()[:2] for line in lines] == [[f"{m.number:04}", m.name] for m in known()]
    assert await pending(db) == list(known()), "a plan changes nothing"
    await migrate(db, "auto")
    assert await migrate(db, "check") == []
    assert await plan(db) == []
    await db.close()


async def test_an_edited_migration_is_noticed(pg: PgServer) -> None:
    db = database(pg)
    await migrate(db, "auto")
    await db.execute(f"UPDATE {db.names.schema('agents')}.migrations SET sha256 = 'x' WHERE number = 1")
    for policy in ("check", "auto"):
        with pytest.raises(SetupError, match="0001"):
            await migrate(db, policy)  # type: ignore[arg-type]  # a str of the two
    await db.close()


@pytest.mark.parametrize(("min_reader", "fits"), [(1, True), (99, False)])
async def test_a_newer_schema_is_used_while_it_allows_it(pg: PgServer, min_reader: int, fits: bool) -> None:
    db = database(pg)
    await migrate(db, "auto")
    schema = db.names.schema("agents")
    await db.execute(f"INSERT INTO {schema}.migrations (number, name, phase, sha256) VALUES (99, 'new', 'pre', 'x')")
    await db.execute(db.queries["raise_min_reader"], str(min_reader))
    if fits:
        assert await migrate(db, "check") == []
    else:
        with pytest.raises(SetupError, match=r"too new.*upgrade cenote"):
            await migrate(db, "check")
    await db.close()


async def test_post_migrations_wait_and_do_not_make_a_schema_behind(
    pg: PgServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = known()[-1].number
    later = (
        Migration(head + 1, "later", "post", 1, "CREATE TABLE {agents}.later (x int)"),
        Migration(head + 2, "latest", "pre", head, "CREATE TABLE {agents}.latest (x int)"),
    )
    now = (*known(), *later)
    monkeypatch.setattr(migrations, "known", lambda: now)
    db = database(pg)
    assert [m.number for m in await migrate(db, "auto", phase="pre")] == [m.number for m in known()]
    with pytest.raises(SetupError, match="behind"):
        await migrate(db, "check")
    assert [m.name for m in await migrate(db, "auto", phase="post")] == ["later"]
    assert [m.name for m in await migrate(db, "auto")] == ["latest"]
    assert await db.fetchval(db.queries["schema_min_reader"]) == str(head)
    await db.close()


async def test_a_migration_that_fails_leaves_nothing(pg: PgServer, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Migration(1, "broken", "pre", 1, "CREATE TABLE {agents}.half (x int); SELECT 1 / 0;")
    monkeypatch.setattr(migrations, "known", lambda: (broken,))
    db = database(pg)
    with pytest.raises(Exception, match="22012"):
        await migrate(db, "auto")
    assert await pending(db) == [broken]
    assert await db.fetchval("SELECT to_regclass($1)", f"{db.names.schema('agents')}.half") is None
    await db.close()


async def test_the_printed_script_leaves_nothing_to_do(pg: PgServer, tmp_path: Path) -> None:
    names = Names("Printed")
    script = tmp_path / "schema.sql"
    script.write_text(print_sql(names))
    psql = await asyncio.create_subprocess_exec(
        pg.bin / "psql", "-X", "-q", "-d", pg.url(), "-f", script, stderr=subprocess.PIPE
    )
    _, said = await psql.communicate()
    assert psql.returncode == 0, said
    db = database(pg, names)
    assert await migrate(db, "check") == []
    assert await pending(db) == []
    await db.close()


async def _roles(pg: PgServer) -> None:
    con = await asyncpg.connect(pg.url())
    await con.execute("""
        CREATE ROLE owner_of_schema LOGIN PASSWORD 'o'; CREATE ROLE writer LOGIN PASSWORD 'w';
        REVOKE CREATE ON DATABASE postgres FROM PUBLIC""")
    for schema in SCHEMAS:
        await con.execute(f'CREATE SCHEMA "Roles_{schema}" AUTHORIZATION owner_of_schema')
    await con.close()


async def test_roles_without_superuser_migrate_and_flush(pg: PgServer) -> None:
    """A DBA made the schemas; their owner may not create schemas, and the application's role owns nothing at all."""
    await _roles(pg)
    names = Names("Roles")
    owner = database(pg, names, url=pg.url(user="owner_of_schema", password="o"))
    assert len(await migrate(owner, "auto")) == len(known())
    await owner.execute(f"""GRANT USAGE ON SCHEMA {names.schema("agents")} TO writer;
        GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {names.schema("agents")} TO writer""")
    writer = database(pg, names, url=pg.url(user="writer", password="w"))
    assert await migrate(writer, "check") == []
    await _used(writer)
    with pytest.raises(SetupError, match="denies"):
        await writer.execute(f"DROP TABLE {names.schema('agents')}.state")
    stranger = database(pg, url=pg.url(user="writer", password="w"))
    with pytest.raises(SetupError, match="denies"):
        await migrate(stranger, "auto")
    for each in (owner, writer, stranger):
        await each.close()


async def _used(db: Database) -> None:
    table = StateTable(db, db.names)
    assert await table.insert_epoch(None, NewEpoch(0, STORE, "c", GUARD.incarnation, "1/1", "test"))
    assert await table.flush([row()], GUARD, beat()) is not None
    assert (await db.identity()).timeline == 1
