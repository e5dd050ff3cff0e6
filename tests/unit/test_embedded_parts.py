"""Embedded servers without servers: identities, locks, ports, state files and waiting."""

import asyncio
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cenote.embedded import inspect, ports, process, stop
from cenote.embedded.locks import close_lock, exclusive, lock, open_lock, try_lock
from cenote.embedded.nats_server import Nats
from cenote.embedded.process import Process
from cenote.embedded.state import DataDir, Ledger, State, write_durably
from cenote.embedded.waiting import settle
from cenote.errors import ServerStartError


def child_that_sleeps() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def identity(pid: int) -> Process:
    began = process._began(pid)
    assert began
    return Process(pid, began)


def test_a_process_is_told_from_a_later_one_with_its_pid() -> None:
    me = identity(os.getpid())
    assert process.alive(me)
    assert not process.alive(Process(me.pid, "another time"))
    assert not process.alive(Process(me.pid, ""))


def test_a_zombie_is_dead() -> None:
    child = child_that_sleeps()
    running = identity(child.pid)
    assert process.alive(running)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has reaped it
    assert not process.alive(running)
    child.wait()


def test_stop_goes_on_to_the_next_signal() -> None:
    ignore = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    script = f"{ignore}; print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"1\n"
        steps = [(signal.SIGINT, 0.1), (signal.SIGKILL, 5.0)]
        assert process.stop(identity(child.pid), steps)
        assert child.wait() == -signal.SIGKILL


def test_holders_of_a_lock_are_found(tmp_path: Path) -> None:
    descriptor = open_lock(tmp_path / "lock")
    try:
        assert process.holders(tmp_path / "lock") == [os.getpid()]
    finally:
        close_lock(descriptor)
    assert process.holders(tmp_path / "lock") == []
    assert process.holders(tmp_path / "none") == []


async def test_two_leases_in_one_process_are_two(tmp_path: Path) -> None:
    first, second = open_lock(tmp_path / "lock"), open_lock(tmp_path / "lock")
    try:
        assert await lock(first, fcntl.LOCK_SH, 1)
        assert await lock(second, fcntl.LOCK_SH, 1)
        assert not try_lock(first, fcntl.LOCK_EX)
        assert not await lock(first, fcntl.LOCK_EX, 0.05)
    finally:
        close_lock(second)
    assert try_lock(first, fcntl.LOCK_EX)
    close_lock(first)


def test_a_forked_child_does_not_keep_the_lease(tmp_path: Path) -> None:
    """In a process of its own: forking one that has threads is not for tests."""
    script = f"""
import fcntl, os, time
from cenote.embedded.locks import open_lock, close_lock, try_lock
lease = open_lock({str(tmp_path / "lock")!r})
assert try_lock(lease, fcntl.LOCK_SH)
if os.fork() == 0:
    print(1, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True) as user:
        try:
            assert user.stdout
            assert user.stdout.readline() == b"1\n"
            lease = open_lock(tmp_path / "lock")
            assert not try_lock(lease, fcntl.LOCK_EX)
            user.kill()
            user.wait()
            assert try_lock(lease, fcntl.LOCK_EX)
            close_lock(lease)
        finally:
            os.killpg(user.pid, signal.SIGKILL)


async def test_waiting_for_a_lock_can_be_cancelled(tmp_path: Path) -> None:
    async with exclusive(tmp_path / "lock"):
        waiter = asyncio.create_task(exclusive(tmp_path / "lock").__aenter__())
        await asyncio.sleep(0.05)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
    async with asyncio.timeout(1), exclusive(tmp_path / "lock"):
        pass


async def test_settle_ends_its_work_before_the_cancellation_goes_on() -> None:
    ended = False

    async def work() -> None:
        nonlocal ended
        await asyncio.sleep(0.05)
        ended = True

    task = asyncio.create_task(settle(work()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


def test_a_port_is_kept_while_it_is_free() -> None:
    port = ports.choose(0)
    assert ports.choose(port) == port
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        assert ports.choose(port, patience_s=0.05) != port


def test_the_state_survives_and_is_private(tmp_path: Path) -> None:
    directory = DataDir(tmp_path / "data")
    directory.create()
    ledger = Ledger(directory, State())
    ledger.record(nats_port=21_000)
    assert directory.load() == ledger.state
    assert directory.state_file.stat().st_mode & 0o777 == 0o600
    assert directory.path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "insta', b"\0" * 100, b"[]", b'{"nats": {"pid": 1}}'])
def test_a_damaged_state_counts_as_none(tmp_path: Path, content: bytes) -> None:
    directory = DataDir(tmp_path)
    write_durably(directory.state_file, content)
    assert directory.load() is None
    assert inspect(tmp_path) is None


def test_a_state_of_a_newer_cenote_is_not_touched(tmp_path: Path) -> None:
    directory = DataDir(tmp_path)
    write_durably(directory.state_file, b'{"format": 2}')
    with pytest.raises(ServerStartError, match="newer cenote"):
        directory.load()


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    mode = tmp_path.stat().st_mode
    with pytest.raises(ServerStartError, match="neither empty nor"):
        DataDir(tmp_path).create()
    assert tmp_path.stat().st_mode == mode


async def test_a_directory_without_servers_is_not_made_by_looking(tmp_path: Path) -> None:
    assert inspect(tmp_path / "none") is None
    assert await stop(tmp_path / "none") == ((), (), False)
    assert not (tmp_path / "none").exists()


def test_a_store_must_be_recovered_unless_it_was_closed(tmp_path: Path) -> None:
    directory = DataDir(tmp_path)
    directory.create()
    nats = Nats(directory, 200)
    assert not nats.must_recover()  # never used
    nats.store.mkdir()
    (nats.store / "block").write_bytes(b"x")
    assert nats.must_recover()
    nats.mark_clean()
    assert not nats.must_recover()
