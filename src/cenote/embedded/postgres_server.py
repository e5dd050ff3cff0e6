"""One private PostgreSQL: its cluster, its settings, whether it answers, and its stop.

As root the server runs under another account, yet its files stay inside the data directory, however private
the directories above are (root's home is usually 0700). On Linux the server inherits a descriptor of
`cluster/`, which belongs to that account, and is given `/proc/self/fd/N/data` as its data directory: the
kernel follows that link straight to the directory, without asking for permission on the way. Elsewhere the
account must be able to walk there.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cenote.embedded import process
from cenote.embedded.account import Account
from cenote.embedded.binaries import Postgres
from cenote.embedded.process import CLEAN_ENVIRONMENT, Process, Spawn, drop
from cenote.embedded.state import DataDir
from cenote.embedded.trouble import hint_for
from cenote.errors import ServerStartError
from cenote.limits import MIB, SERVER_START_S, SERVER_STOP_S

SUPERUSER = "cenote_admin"  # used by the life cycle alone
ROLE = "cenote"  # what everybody else logs in as: owns the database, is no superuser
DATABASE = "cenote"


class Cluster:
    """The files and the process of the PostgreSQL of one data directory."""

    def __init__(self, directory: DataDir) -> None:
        self.home = directory.postgres / "cluster"
        self.data = self.home / "data"
        self.lock = directory.postgres / "server.lock"
        self.log = directory.postgres / "postgres.log"

    def check_version(self, binary: Postgres) -> None:
        """Refuse a cluster of another major version; nothing is touched."""
        try:
            major = (self.data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            return
        if major != str(binary.major):
            raise ServerStartError(
                f"{self.data} was made by PostgreSQL {major}, {binary.bin} has {binary.version}",
                hint=f"set embedded.postgres_bin to a PostgreSQL {major}, or dump the database with that and "
                "restore it into a new data_dir",
            )

    def create(self, binary: Postgres, account: Account | None, password: str, lock: int, *, sync: bool) -> None:
        """Run initdb into a draft that gets its name when it is complete."""
        self.home.mkdir(mode=0o700, exist_ok=True)
        if account is not None:
            os.chown(self.home, account.uid, account.gid)
        draft, secret = self.home / "data.new", self.home / "password"
        shutil.rmtree(draft, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            secret.unlink()
        descriptor = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(password)
            if account is not None:
                os.fchown(file.fileno(), account.uid, account.gid)
        try:
            with self._walk(account) as (home, descriptors):
                command = [*_initdb(binary, home), *([] if sync else ["--no-sync"])]
                _run(command, account, (lock, *descriptors))
        finally:
            secret.unlink()
        draft.rename(self.data)

    def launch(self, binary: Postgres, account: Account | None, port: int, lock: int) -> Process:
        """Start `postgres` itself, not through pg_ctl: it stays our child."""
        with self._walk(account) as (home, descriptors):
            settings = [f"--{name}={value}" for name, value in _settings(port).items()]
            command = [str(binary.bin / "postgres"), "-D", f"{home}/data", *settings]
            return process.spawn(command, Spawn(self.log, lock, account, descriptors))

    def is_ready(self, running: Process) -> bool:
        """What the server itself says: line 1 of postmaster.pid is its pid, line 8 its state."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            return False
        return len(lines) >= 8 and lines[0] == str(running.pid) and lines[7].strip() == "ready"

    def reset_password(self, binary: Postgres, account: Account | None, password: str, lock: int) -> None:
        """Give the superuser a password again after state.json was lost; the server must be stopped."""
        with self._walk(account) as (home, descriptors):
            command = [str(binary.bin / "postgres"), "--single", "-D", f"{home}/data", "postgres"]
            statement = f"ALTER ROLE {SUPERUSER} PASSWORD '{password}'\n"
            _run(command, account, (lock, *descriptors), stdin=statement)

    def stop(self, running: Process, *, keep: bool = True) -> bool:
        """Fast shutdown, then immediate shutdown (recovery at the next start); SIGKILL only when all failed.
        With `keep` false the files are about to vanish, so nothing is worth a checkpoint."""
        fast = [(signal.SIGINT, float(SERVER_STOP_S))] if keep else []
        return process.stop(running, [*fast, (signal.SIGQUIT, SERVER_STOP_S), (signal.SIGKILL, 5)])

    def forget_stale_pid(self) -> bool:
        """Put a postmaster.pid aside whose pid is a zombie's or another program's; whether it was.

        PostgreSQL cannot tell and refuses to start: in a container without an init nobody reaps a postmaster that
        outlived its starter, and after a container's restart its pid may be a stranger's. We can tell because we
        hold server.lock: no process of the old server is left that could still have the shared memory.
        """
        file = self.data / "postmaster.pid"
        try:
            program = process.program_of(int(file.read_text().splitlines()[0]))
        except (FileNotFoundError, ValueError, IndexError):
            return False
        if program is not None and program.startswith("postgres"):
            return False
        file.rename(self.home / "postmaster.pid.stale")
        return True

    @contextlib.contextmanager
    def _walk(self, account: Account | None) -> Iterator[tuple[str, tuple[int, ...]]]:
        """A path to `cluster/` that the account can use, and the descriptors it must inherit."""
        if account is None or not sys.platform.startswith("linux"):
            yield str(self.home), ()
            return
        descriptor = os.open(self.home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{descriptor}", (descriptor,)
        finally:
            os.close(descriptor)


def _initdb(binary: Postgres, home: str) -> list[str]:
    locale = ["--locale=C"]
    if binary.major >= 17:  # upper() and ILIKE beyond ASCII, and no dependence on the system's libraries
        locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    account = [f"--username={SUPERUSER}", "--auth=scram-sha-256", f"--pwfile={home}/password"]
    return [
        *[str(binary.bin / "initdb"), f"--pgdata={home}/data.new", "--encoding=UTF8", "--data-checksums"],
        *[*locale, *account, "--no-instructions"],
    ]


def _settings(port: int) -> dict[str, object]:
    """Given on the command line at every start, so that a new cenote brings its own and no file has to be
    migrated."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",  # TCP serves everybody, and socket paths end at 107 bytes
        "max_connections": 100,
        "shared_buffers": f"{max(32, min(256, memory // MIB // 8))}MB",
        "max_wal_size": "1GB",
        "checkpoint_timeout": "15min",
        "wal_compression": "pglz",  # the wheel has no other
        "idle_in_transaction_session_timeout": "30s",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_checkpoints": "off",
        "log_error_verbosity": "terse",  # DETAIL lines, statements and parameters carry users' values
        "log_min_error_statement": "panic",
        "log_parameter_max_length_on_error": 0,
    }


def _run(command: list[str], account: Account | None, descriptors: tuple[int, ...], *, stdin: str = "") -> None:
    answer = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        cwd="/",
        env=CLEAN_ENVIRONMENT,
        start_new_session=True,
        umask=0o077,
        pass_fds=descriptors,
        timeout=SERVER_START_S,
        check=False,
        **drop(account),
    )
    if answer.returncode != 0:
        words = (answer.stderr or answer.stdout).strip()
        raise ServerStartError(f"{Path(command[0]).name} failed: {words}", hint=hint_for(words))
