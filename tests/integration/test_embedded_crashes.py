"""Embedded servers after kill -9, power cuts and lost files: they come back, and no sequence is given out twice."""

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from embedded_user import Recovery, User, connect, identity, query, until, use

from cenote.embedded import inspect, process, stop
from cenote.embedded.state import write_durably
from cenote.errors import ServerStartError


def is_open(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


async def test_a_killed_nats_is_recovered_in_private_and_comes_back_where_it_was(tmp_path: Path) -> None:
    recovery = Recovery()
    ours = await use(tmp_path / "data", recovery)
    before = ours.info()["nats"]
    seen: list[bool] = []
    recovery.also = lambda: seen.append(is_open(before["address"]))
    client = await connect(ours.nats, reconnect_time_wait=0.01, max_reconnect_attempts=-1)
    await client.jetstream().add_stream(name="S", subjects=["s"])
    os.kill(before["pid"], signal.SIGKILL)
    ours.poke()
    await until(lambda: ours.restarts["nats"] == 1)

    [(address, dsn)] = recovery.calls
    assert ours.nats
    assert dsn == ours.sql_dsn
    assert seen == [False], "no client gets in before the store is recovered"
    assert address.url != ours.nats.url
    assert address.password != ours.nats.password
    after = ours.info()["nats"]
    assert after["address"] == before["address"]
    assert after["pid"] != before["pid"]
    await until(lambda: client.is_connected)
    assert (await client.jetstream().publish("s", b"1")).seq == 1
    await client.close()
    await ours.release()


async def test_a_killed_postgres_comes_back_with_what_was_committed(tmp_path: Path) -> None:
    ours = await use(tmp_path / "data")
    await query(ours, "CREATE TABLE t AS SELECT 7 AS n")
    busy = await asyncpg.connect(ours.sql_dsn)
    sleeping = asyncio.create_task(busy.fetchval("SELECT pg_sleep(600)"))  # a backend that outlives its postmaster
    await until(lambda: not sleeping.done())
    dsn = ours.sql_dsn
    os.kill(ours.info()["postgres"]["pid"], signal.SIGKILL)
    await until(lambda: ours.restarts["postgres"] == 1)  # without a poke: the watch sees it
    assert ours.sql_dsn == dsn
    assert await query(ours, "SELECT n FROM t") == 7
    await asyncio.gather(sleeping, return_exceptions=True)
    busy.terminate()
    await ours.release()


async def test_both_killed_at_once_come_back_once(tmp_path: Path) -> None:
    """Three users watch; the dead servers are started by one of them, and all go on with the same ones."""
    recovery = Recovery()
    users = [await use(tmp_path / "data", recovery) for _ in range(3)]
    before = users[0].info()
    for name in ("nats", "postgres"):
        os.kill(before[name]["pid"], signal.SIGKILL)
    await until(lambda: all(set(user.restarts.values()) == {1} for user in users))
    infos = [user.info() for user in users]
    assert infos[0] == infos[1] == infos[2]
    assert len(recovery.calls) == 1
    await asyncio.gather(*(user.release() for user in users))


async def test_servers_that_die_again_and_again_are_restarted_ever_more_slowly(tmp_path: Path) -> None:
    ours = await use(tmp_path / "data")
    loop, times = asyncio.get_running_loop(), []
    for restarts in range(1, 5):
        began = loop.time()
        os.kill(ours.info()["nats"]["pid"], signal.SIGKILL)
        ours.poke()
        await until(lambda wanted=restarts: ours.restarts["nats"] == wanted)  # type: ignore[misc]  # no inference
        times.append(loop.time() - began)
    assert times[3] > 0.5 > times[0] or times[3] > times[0] + 0.4
    await ours.release()


async def test_the_owner_is_killed_and_another_user_looks_after_the_servers(tmp_path: Path) -> None:
    with User(tmp_path / "data") as owner:
        info = await owner.says()
        recovery = Recovery()
        ours = await use(tmp_path / "data", recovery)
        owner.kill()
        assert ours.info()["nats"]["owner"] == owner.pid
        assert all(process.alive(identity(info, name)) for name in ("nats", "postgres"))
        os.kill(info["nats"]["pid"], signal.SIGKILL)
        await until(lambda: ours.restarts["nats"] == 1)
        assert len(recovery.calls) == 1
        assert ours.info()["nats"]["owner"] == os.getpid()
        await ours.release()
    found = inspect(tmp_path / "data")
    assert found
    assert (found["nats"], found["postgres"]) == (None, None), "we were the last"


async def test_an_unclean_stop_is_recovered_before_the_port_is_told(tmp_path: Path) -> None:
    """Everything dies at once, as in a power cut; then the recovery fails once."""
    with User(tmp_path / "data") as user:
        info = await user.says()
        user.kill()
    for name in ("nats", "postgres"):
        server = identity(info, name)
        process.stop(server, [(signal.SIGKILL, 5)])
    recovery = Recovery()
    recovery.error = OSError("the drain broke")
    with pytest.raises(ServerStartError, match="the drain broke") as raised:
        await use(tmp_path / "data", recovery)
    assert "tries again" in str(raised.value)
    found = inspect(tmp_path / "data")
    assert found
    assert (found["nats"], found["postgres"]) == (None, None), "a failed start leaves nothing running"

    recovery.error = None
    await (await use(tmp_path / "data", recovery)).release()
    assert len(recovery.calls) == 2, "asked for again until it worked"
    await (await use(tmp_path / "data", recovery)).release()
    assert len(recovery.calls) == 2, "and then no more"


async def test_a_user_killed_during_the_recovery(tmp_path: Path) -> None:
    """The server in recovery outlives its starter; the next user ends it and recovers again."""
    with User(tmp_path / "data", hang=True) as user:
        os.kill((await user.says())["nats"]["pid"], signal.SIGKILL)
        assert "recovering" in await user.says()
        user.kill()
    in_recovery = inspect(tmp_path / "data")
    assert in_recovery
    assert (in_recovery["nats"]["phase"], in_recovery["nats"]["alive"]) == ("recovery", True)
    old = identity(in_recovery, "nats")
    recovery = Recovery()
    ours = await use(tmp_path / "data", recovery)
    assert not process.alive(old)
    assert len(recovery.calls) == 1
    await ours.release()


@pytest.mark.parametrize("damage", [b"", b'{"format": 1, "inst'])
async def test_a_lost_state_is_made_anew_while_the_servers_run(tmp_path: Path, damage: bytes) -> None:
    """Servers that nobody knows any more are stopped, passwords are set again, the data stays."""
    first = await use(tmp_path / "data")
    await query(first, "CREATE TABLE t AS SELECT 7 AS n")
    await first.release()
    with User(tmp_path / "data") as user:
        info = await user.says()
        unknown = [identity(info, name) for name in ("nats", "postgres")]
        user.kill()
    write_durably(tmp_path / "data" / "state.json", damage)
    ours = await use(tmp_path / "data")
    assert not any(process.alive(server) for server in unknown)
    assert await query(ours, "SELECT n FROM t") == 7
    assert ours.sql_dsn != first.sql_dsn
    await ours.release()


async def test_stop_finds_servers_that_no_state_names(tmp_path: Path) -> None:
    """Their starter was killed between starting and noting them; their locks give them away."""
    with User(tmp_path / "data") as user:
        info = await user.says()
        unknown = [identity(info, name) for name in ("nats", "postgres")]
        user.kill()
    write_durably(tmp_path / "data" / "state.json", b"")
    assert (await stop(tmp_path / "data")).in_use is False
    assert not any(process.alive(server) for server in unknown)


async def test_a_stale_state_names_processes_that_are_others_now(tmp_path: Path) -> None:
    """As after a reboot: the pids in state.json and postmaster.pid belong to strangers, who are left in peace."""
    with User(tmp_path / "data") as user:
        info = await user.says()
        user.kill()
    for name in ("nats", "postgres"):
        process.stop(identity(info, name), [(signal.SIGKILL, 5)])
    me = str(os.getpid()).encode()
    state = tmp_path / "data" / "state.json"
    text = state.read_bytes()
    for name in ("nats", "postgres"):
        text = text.replace(b'"pid":%d' % info[name]["pid"], b'"pid":' + me)
    state.write_bytes(text)
    pid_file = tmp_path / "data" / "postgres" / "cluster" / "data" / "postmaster.pid"
    lines = pid_file.read_bytes().split(b"\n")
    stranger = await asyncio.create_subprocess_exec("sleep", "60", **_as_the_owner_of(pid_file))
    pid_file.write_bytes(b"\n".join([str(stranger.pid).encode(), *lines[1:]]))
    ours = await use(tmp_path / "data")
    assert await query(ours, "SELECT 1") == 1
    await ours.release()
    assert stranger.returncode is None
    stranger.kill()
    await stranger.wait()


def _as_the_owner_of(file: Path) -> dict[str, Any]:
    owner = file.stat()
    return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}


async def test_an_initdb_that_was_killed_is_done_again(tmp_path: Path) -> None:
    for delay_s in (0.1, 0.4, 0.7):
        with User(tmp_path / "data") as user:
            await asyncio.sleep(delay_s)
            user.kill()
    ours = await use(tmp_path / "data")
    assert await query(ours, "SELECT 1") == 1
    await ours.release()
