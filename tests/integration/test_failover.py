"""A URL that names two servers: the standby is promoted when the primary is killed, and the pool finds it."""

import asyncio
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from pg_server import PgServer, _as_nobody, database, running_server, until

from cenote.errors import CenoteError
from cenote.sql.migrate import migrate
from cenote.sql.operations import transact_once
from cenote.sql.transaction import Isolation, Transaction


@contextmanager
def standby_of(primary: PgServer) -> Iterator[PgServer]:
    """A streaming replica of the primary, which waits for it with each commit."""
    root = Path(tempfile.mkdtemp(prefix="cenote-pg-", dir="/tmp"))
    root.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    primary.stop()
    shutil.copytree(primary.root / "data", root / "data", copy_function=shutil.copy2)
    (root / "data" / "standby.signal").touch()
    with (root / "data" / "postgresql.conf").open("a") as conf:
        login = f"host=127.0.0.1 port={primary.port} user=postgres password={primary.password}"
        conf.write(f"primary_conninfo = '{login}'\n")
    if owner := _as_nobody().get("user"):
        for path in [root, *root.rglob("*")]:
            shutil.chown(path, owner, owner)  # type: ignore[call-overload]  # both are numbers here
    with (primary.root / "data" / "postgresql.conf").open("a") as conf:
        conf.write("synchronous_standby_names = '*'\n")
    primary.start()
    standby = replace(primary, root=root, port=port, process=None)
    try:
        standby.start()
        yield standby
    finally:
        standby.stop(signal.SIGINT)
        shutil.rmtree(root, ignore_errors=True)


@pytest.mark.judge
async def test_a_promoted_standby_takes_over_and_no_commit_is_lost() -> None:
    with running_server() as primary, standby_of(primary) as standby:
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        url = f"postgresql://postgres:{primary.password}@{hosts}/postgres?target_session_attrs=read-write"
        db = database(primary, url=url)
        await migrate(db, "auto")
        await db.execute("CREATE TABLE counted (n bigint NOT NULL)")
        await db.execute("INSERT INTO counted VALUES (0)")
        done, failed = 0, 0

        async def add(tx: Transaction) -> None:
            await tx.execute("UPDATE counted SET n = n + 1")

        async def work() -> None:
            nonlocal done, failed
            while done < 400:
                try:
                    await transact_once(db, add, Isolation.READ_COMMITTED, 30_000)
                    done += 1
                except CenoteError:
                    failed += 1
                    await asyncio.sleep(0.05)

        working = [asyncio.create_task(work()) for _ in range(4)]

        async def begun() -> bool:
            return done >= 100

        await until(begun)
        primary.stop(signal.SIGKILL)
        beside = await asyncpg.connect(standby.url())
        assert await beside.fetchval("SELECT pg_promote()")
        await beside.close()
        await asyncio.gather(*working)
        total = await db.fetchval("SELECT n FROM counted")
        assert await db.fetchval("SELECT NOT pg_is_in_recovery()")
        assert done <= total <= done + failed
        print(f"{done} done, {failed} failed, {total} counted")
        await db.close()
