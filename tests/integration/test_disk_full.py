"""PostgreSQL's disk is full: KV goes on acknowledging until the backlog is full, then writes are refused typed; once
there is room, everything drains by itself (I1, I13, I16)."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pg_server import NOBODY, running_server

import cenote
from cenote.testing import TestServers
from witness import another, demand, eventually, evict_all, reached

BACKLOG_MAX = 600
DISK = "24m"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, that PostgreSQL may write to."""
    place = Path("/tmp") / f"cenote-disk-{os.getpid()}"
    place.mkdir(mode=0o755)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK},uid={NOBODY},gid={NOBODY},mode=700", "tmpfs", str(place)],
        capture_output=True, check=False,
    ).returncode == 0  # fmt: skip
    try:
        if not mounted:
            pytest.skip("mounting a small file system is not allowed here")
        yield place
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.judge
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount a small file system")
async def test_a_full_disk_of_postgresql_loses_nothing(cenote_servers: TestServers, disk: Path) -> None:
    """The tables lie on a disk of 24 MiB, which somebody else's file fills."""
    with running_server() as pg:
        link = await asyncpg.connect(pg.url())
        await link.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
        await link.execute("ALTER ROLE postgres SET default_tablespace = small")
        await link.close()
        settings = cenote_servers.by_url(flush__drain_ms=0, flush__backlog_count_max=BACKLOG_MAX) | {"sql": pg.url()}
        async with cenote.open(**settings) as store:
            agent = store.agent("full")
            await agent.put("before", "x", durability="sql")
            ballast = disk / "ballast"
            with ballast.open("wb") as file:
                fill(file.fileno())
            acked: list[int] = []

            async def refused() -> bool:
                number = len(acked)
                try:
                    await agent.put(f"k{number}", f"{number} " + os.urandom(2_000).hex())
                except cenote.BackpressureError:
                    return True
                acked.append(number)
                return False

            await reached(refused, "the backlog is full")
            assert BACKLOG_MAX / 2 <= len(acked) <= BACKLOG_MAX * 3

            async def told() -> bool:
                health = await store.health()
                return health.verdict is cenote.Verdict.DEGRADED and "unflushed write" in str(health)

            await eventually(told, "I13: health does not say that nothing is flushed")
            said = await doctor(settings)
            demand("PostgreSQL does not take its flushes" in said, f"I13: the doctor finds nothing: {said}")
            ballast.unlink()
            await store.flush(30)

            async def taken() -> bool:
                try:
                    await agent.put("after", 1, durability="sql")
                except cenote.BackpressureError:
                    return False
                return True

            await eventually(taken, "I16: writes are refused although nothing waits any more")
            await evict_all(store)
            async with another(store) as other:
                for number in acked:
                    value = await other.agent("full").get(f"k{number}", "")
                    demand(str(value).startswith(f"{number} "), f"I1: k{number} was acknowledged, and is lost")
            assert not await store._core.table.dead_letters(0, 10)


async def doctor(settings: dict[str, Any]) -> str:
    """What `cenote doctor` says of the store."""
    command = (sys.executable, "-m", "cenote.cli", "doctor", "--namespace", settings["namespace"])
    environment = os.environ | {
        "CENOTE_KV__URL": settings["kv"], "CENOTE_KV__USER": settings["kv__user"],
        "CENOTE_KV__PASSWORD": settings["kv__password"], "CENOTE_SQL__URL": settings["sql"],
    }  # fmt: skip
    child = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return (await child.communicate())[0].decode()


def fill(file: int) -> None:
    """Write until there is no room left."""
    try:
        while os.write(file, bytes(1 << 16)):
            pass
    except OSError:
        return
