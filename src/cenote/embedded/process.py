"""Processes that outlive the one that started them: their identity, their locks, their start and their end.

Authority: a server lives as long as its lock file is locked. The server inherits the locked descriptor, and
so do all its children, so the kernel itself frees the lock when the last of them is gone: after a kill -9,
across pid reuse, and between containers that share a data directory. The pid and its start time only say whom
to signal.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from cenote.embedded.account import Account
from cenote.limits import SERVER_LOG_BYTES_MAX

CLEAN_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}
_LINUX = sys.platform.startswith("linux")
LOOK_IS_CHEAP = _LINUX  # elsewhere `alive` runs a program


class Process(msgspec.Struct, frozen=True):
    """A process, told apart from a later one with the same pid by when it began."""

    pid: int
    began: str


class Spawn(NamedTuple):
    """What a server needs besides its command line."""

    log: Path  # takes stdout and stderr
    lock: int  # the locked descriptor that the server inherits
    account: Account | None = None  # whom to drop to, None = stay who we are
    descriptors: tuple[int, ...] = ()  # further descriptors to inherit


def spawn(command: Sequence[str], how: Spawn) -> Process:
    """Start a server in a session of its own (Ctrl-C stays ours), reaped by a thread as soon as it ends.

    The thread also keeps the Popen object: dropped while the server lives, it would warn and leave a zombie.
    """
    log = os.open(how.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=CLEAN_ENVIRONMENT,
            start_new_session=True,
            umask=0o077,
            pass_fds=(how.lock, *how.descriptors),
            **drop(how.account),
        )
    finally:
        os.close(log)
    process = Process(child.pid, _began(child.pid) or "")
    threading.Thread(target=child.wait, name=f"cenote-reap-{child.pid}", daemon=True).start()
    return process


def drop(account: Account | None) -> dict[str, Any]:
    """Arguments for `subprocess` that give up root for good."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def alive(process: Process) -> bool:
    """Whether this very process still runs; a zombie does not."""
    return process.began != "" and _began(process.pid) == process.began


def deathbed(process: Process) -> int | None:
    """A descriptor that becomes readable as soon as the process ends, whoever its parent is; None where the system has
    none, or the process is gone already."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return None  # gone, an old kernel, or one that forbids it
    if alive(process):
        return descriptor
    os.close(descriptor)
    return None


def myself() -> Process:
    """The process that asks."""
    return Process(os.getpid(), _began(os.getpid()) or "")


def stop(process: Process, steps: Sequence[tuple[signal.Signals, float]]) -> bool:
    """Send each signal in turn and wait its seconds for the end; whether the process is gone."""
    for number, seconds in steps:
        if not alive(process):
            return True
        os.kill(process.pid, number)
        deadline = time.monotonic() + seconds
        while alive(process):
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
    return not alive(process)


def holders(lock: Path) -> list[int]:
    """The processes that have this lock file open, as far as we are allowed to see them."""
    try:
        wanted = os.stat(lock)
    except FileNotFoundError:
        return []
    if not _LINUX:
        return _holders_by_lsof(lock)
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit() and _has_open(name, wanted))


def program_of(pid: int) -> str | None:
    """The name of the program a pid runs; None when it runs none, as a zombie."""
    if _began(pid) is None:
        return None
    if _LINUX:
        try:
            return Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            return None
    name = _ps(pid, "comm=")
    return Path(name).name if name else None


def tail(log: Path, since: int = 0, lines: int = 8) -> str:
    """The last lines a server wrote after byte `since` of its log."""
    try:
        with log.open("rb") as file:
            file.seek(max(since, file.seek(0, os.SEEK_END) - 8192))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def size(log: Path) -> int:
    """Where a server that starts now begins to write."""
    return log.stat().st_size if log.exists() else 0


def rotate(log: Path) -> None:
    """Put a long log aside; one old one is kept."""
    if size(log) > SERVER_LOG_BYTES_MAX:
        log.replace(log.with_name(log.name + ".1"))


def _began(pid: int) -> str | None:
    """When a live process began, as the system tells it; None when there is none or only its zombie."""
    if not _LINUX:
        state, _, began = (_ps(pid, "stat=", "lstart=") or "Z").partition(" ")
        return None if state.startswith("Z") else began.strip()
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # proc(5): after the name come field 3, the state, and field 22, the start in clock ticks since boot
    return None if fields[0] in "ZXx" else f"{fields[19]}@{_boot()}"


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return ""  # gVisor and the like have none; the ticks alone must do


def _ps(pid: int, *columns: str) -> str | None:
    options = [option for column in columns for option in ("-o", column)]
    command = ["/bin/ps", "-p", str(pid), *options]
    answer = subprocess.run(command, capture_output=True, text=True, env=CLEAN_ENVIRONMENT, check=False)
    return answer.stdout.strip() or None


def _has_open(pid: str, wanted: os.stat_result) -> bool:
    directory = f"/proc/{pid}/fd"
    try:
        names = os.listdir(directory)
    except OSError:
        return False  # gone, or somebody else's
    for name in names:
        try:
            found = os.stat(f"{directory}/{name}")
        except OSError:
            continue
        if (found.st_ino, found.st_dev) == (wanted.st_ino, wanted.st_dev):
            return True
    return False


def _holders_by_lsof(lock: Path) -> list[int]:
    try:
        answer = subprocess.run(
            ["lsof", "-t", "--", str(lock)],
            capture_output=True,
            text=True,
            env=CLEAN_ENVIRONMENT,
            check=False,
        )
    except OSError:
        return []
    return sorted({int(pid) for pid in answer.stdout.split()})
