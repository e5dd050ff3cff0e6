"""Embedded servers in good weather: private, shared, stable over restarts, stopped by the last user."""

import asyncio
import fcntl
import os
import socket
import stat
import sys
import time
from pathlib import Path

import asyncpg
import pytest
from embedded_user import Recovery, User, connect, identity, query, until, use

from cenote.embedded import TEMPORARY, inspect, process, servers, stop
from cenote.embedded.locks import close_lock, open_lock, try_lock
from cenote.embedded.nats_server import Access, answers


async def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    recovery = Recovery()
    first = await use(tmp_path / "data", recovery)
    await query(first, "CREATE TABLE t AS SELECT 7 AS n")
    link = await connect(first.nats)
    await link.jetstream().add_stream(name="S", subjects=["s"])
    await link.jetstream().publish("s", b"seven")
    await link.close()
    before = (first.nats, first.sql_dsn)
    await first.release()
    await first.release()  # twice is fine

    again = await use(tmp_path / "data", recovery)
    assert (again.nats, again.sql_dsn) == before, "clients find them where they were"
    assert await query(again, "SELECT n FROM t") == 7
    link = await connect(again.nats)
    assert (await link.jetstream().get_msg("S", 1)).data == b"seven"
    await link.close()
    await again.release()
    assert recovery.calls == [], "a clean stop needs no recovery"


async def test_nobody_else_gets_in(tmp_path: Path) -> None:
    ours = await use(tmp_path / "data")
    try:
        assert ours.nats
        assert ours.sql_dsn
        access = Access(
            f"cenote-{ours.info()['instance']}",
            int(ours.nats.url.rpartition(":")[2]),
            ours.nats.user,
            ours.nats.password,
        )
        assert answers(access)
        assert not answers(access._replace(password="guess"))
        assert not answers(access._replace(name="a stranger's"))
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(ours.sql_dsn, password="guess")
        assert not await query(ours, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        assert await query(ours, "SELECT datdba::regrole::text FROM pg_database WHERE datname = 'cenote'") == "cenote"
        for parent, _, names in os.walk(ours.data_dir):
            for path in (Path(parent), *(Path(parent) / name for name in names)):
                if path.exists():  # the servers are at work
                    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    finally:
        await ours.release()


async def test_the_database_is_made_as_promised(tmp_path: Path) -> None:
    ours = await use(tmp_path / "data")
    try:
        for setting, value in {
            "fsync": "on",
            "data_checksums": "on",
            "server_encoding": "UTF8",
            "listen_addresses": "127.0.0.1",
            "password_encryption": "scram-sha-256",
            "TimeZone": "UTC",
        }.items():
            assert await query(ours, f"SHOW {setting}") == value
        await query(ours, "CREATE SCHEMA agents")  # the role owns the database
        assert await query(ours, "SELECT system_identifier FROM pg_control_system()")
        if int(await query(ours, "SHOW server_version_num")) >= 170_000:
            assert await query(ours, "SELECT upper('ä')") == "Ä"
    finally:
        await ours.release()


async def test_processes_share_and_the_last_one_out_stops(tmp_path: Path) -> None:
    with User(tmp_path / "data") as first, User(tmp_path / "data") as second:
        seen, also_seen = await first.says(), await second.says()
        running = [identity(seen, name) for name in ("nats", "postgres")]
        assert [identity(also_seen, name) for name in ("nats", "postgres")] == running
        assert await stop(tmp_path / "data") == ((), tuple(sorted((first.pid, second.pid))), True)
        await first.leave()
        assert all(process.alive(server) for server in running)
        await second.leave()
        assert not any(process.alive(server) for server in running)


async def test_two_stores_in_one_process_count_as_two(tmp_path: Path) -> None:
    first, second = await asyncio.gather(use(tmp_path / "data"), use(tmp_path / "data"))
    assert first.info()["nats"]["pid"] == second.info()["nats"]["pid"]
    await first.release()
    assert await query(second, "SELECT 1") == 1
    server = identity(second.info(), "postgres")
    await second.release()
    assert not process.alive(server)


async def test_a_newcomer_keeps_the_servers_from_stopping(tmp_path: Path) -> None:
    """Users that come and go at once: each finds running servers, and none are left in the end."""
    for _ in range(3):
        came = await use(tmp_path / "data")
        leaving = asyncio.create_task(came.release())
        others = await asyncio.gather(*(use(tmp_path / "data") for _ in range(3)))
        await leaving
        assert [await query(other, "SELECT 1") for other in others] == [1, 1, 1]
        await asyncio.gather(*(other.release() for other in others))
    found = inspect(tmp_path / "data")
    assert found
    assert (found["nats"], found["postgres"]) == (None, None)


async def test_only_what_is_needed_is_started(tmp_path: Path) -> None:
    recovery = Recovery()
    kv = await use(tmp_path / "data", recovery, postgres=False, sql_dsn="postgresql://elsewhere/db")
    assert kv.sql_dsn is None
    assert "postgres" not in kv.info()
    both = await use(tmp_path / "data")
    assert both.info()["nats"] == kv.info()["nats"]
    assert await query(both, "SELECT 1") == 1
    await kv.release()
    await both.release()
    with pytest.raises(ValueError, match="drain"):
        await use(tmp_path / "data", postgres=False)


async def test_a_temporary_directory_vanishes_with_its_last_user(tmp_path: Path) -> None:
    first = await use(TEMPORARY)
    second = await use(first.data_dir)
    other = await use(TEMPORARY)
    assert other.data_dir != first.data_dir
    await other.release()
    await first.release()
    assert second.data_dir.exists()
    await second.release()
    assert not second.data_dir.exists()


ATEXIT = """
import atexit, sys
from cenote import blocking

store = blocking.open(data_dir=sys.argv[1])
atexit.register(store.close)
store.agent("ant").put("k", 1)
"""


async def test_who_closes_at_exit_stops_the_servers(tmp_path: Path) -> None:
    user = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ATEXIT, str(tmp_path), stderr=asyncio.subprocess.PIPE
    )
    _, words = await user.communicate()
    assert user.returncode == 0
    assert words == b""
    found = inspect(tmp_path)
    assert found
    assert (found["nats"], found["postgres"]) == (None, None)


async def test_a_killed_user_leaves_a_temporary_directory_to_the_next(tmp_path: Path) -> None:
    with User(TEMPORARY) as user:
        info = await user.says()
        running = [identity(info, name) for name in ("nats", "postgres")]
        user.kill()
    assert all(process.alive(server) for server in running)
    await servers.sweep()
    assert not any(process.alive(server) for server in running)
    assert inspect(info["data_dir"]) is None


async def test_a_taken_port_is_given_up(tmp_path: Path) -> None:
    first = await use(tmp_path / "data")
    before = first.info()
    await first.release()
    with socket.socket() as stranger:
        host, port = before["nats"]["address"].split(":")
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind((host, int(port)))
        stranger.listen()
        again = await use(tmp_path / "data")
        assert again.info()["nats"]["address"] != before["nats"]["address"]
        assert again.info()["postgres"]["address"] == before["postgres"]["address"]
        await (await connect(again.nats)).close()
        await again.release()


async def test_the_loop_goes_on_while_servers_start(tmp_path: Path) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.005)

    ticker = asyncio.create_task(tick())
    began = time.monotonic()
    ours = await use(tmp_path / "data")
    took_s = time.monotonic() - began
    ticker.cancel()
    await ours.release()
    assert ticks > took_s / 0.005 / 10, f"{ticks} ticks in {took_s:.1f} s"


async def test_a_start_that_is_cancelled_leaves_nothing_running(tmp_path: Path) -> None:
    for delay_s in (0.002, 0.01, 0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9):
        start = asyncio.create_task(use(tmp_path / "data"))
        await asyncio.sleep(delay_s)
        start.cancel()
        outcome = (await asyncio.gather(start, return_exceptions=True))[0]
        if isinstance(outcome, servers.Servers):
            await outcome.release()
        for name in ("nats", "postgres"):
            assert process.holders(tmp_path / "data" / name / "server.lock") == []
    ours = await use(tmp_path / "data")
    assert await query(ours, "SELECT 1") == 1
    await ours.release()


async def test_stop_ends_what_killed_users_left(tmp_path: Path) -> None:
    with User(tmp_path / "data") as user:
        info = await user.says()
        user.kill()
    found = inspect(tmp_path / "data")
    assert found
    assert (found["nats"]["alive"], found["postgres"]["alive"], found["users"]) == (True, True, [])
    running = identity(info, "nats")
    assert await stop(tmp_path / "data") == (("nats", "postgres"), (), False)
    assert not process.alive(running)
    recovery = Recovery()
    await (await use(tmp_path / "data", recovery)).release()
    assert recovery.calls == [], "that stop was clean"


async def test_a_servers_lock_is_its_life(tmp_path: Path) -> None:
    ours = await use(tmp_path / "data")
    locks = [tmp_path / "data" / name / "server.lock" for name in ("nats", "postgres")]
    descriptors = [open_lock(lock) for lock in locks]
    assert not any(try_lock(descriptor, fcntl.LOCK_EX) for descriptor in descriptors)
    await ours.release()
    await until(lambda: all(try_lock(descriptor, fcntl.LOCK_EX) for descriptor in descriptors))
    for descriptor in descriptors:
        close_lock(descriptor)
