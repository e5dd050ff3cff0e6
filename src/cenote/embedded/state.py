"""What the processes of one data directory know together: state.json, and the names of all files beside
it."""

import contextlib
import os
import secrets
import shutil
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import platformdirs

from cenote.embedded.process import Process
from cenote.errors import ServerStartError

TEMPORARY = ":temporary:"
TEMPORARY_PREFIX = "cenote-"
_NAMES = {"start.lock", "users.lock", "state.json", "nats", "postgres", "serve.json", "serve.log", "serve.log.1"}
Name = Literal["nats", "postgres"]
Phase = Literal["starting", "recovery", "public"]


def _password() -> str:
    return secrets.token_urlsafe(32)


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A server that was started; whether it still lives is for `process.alive` to say."""

    process: Process
    port: int
    phase: Phase
    version: str = ""
    started_at: str  # UTC, ISO 8601
    owner: int  # pid of the process that started it

    @classmethod
    def born(cls, process: Process, port: int, phase: Phase) -> "Server":
        """A server that we have just started."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return cls(process=process, port=port, phase=phase, started_at=now, owner=os.getpid())

    def opened(self, version: str) -> "Server":
        """The same server, ready for clients."""
        return msgspec.structs.replace(self, phase="public", version=version)


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of state.json; passwords are made once and kept over restarts."""

    format: int = 1
    instance: str = msgspec.field(default_factory=lambda: secrets.token_hex(8))
    temporary: bool = False
    nats_password: str = msgspec.field(default_factory=_password)
    sql_password: str = msgspec.field(default_factory=_password)
    superuser_password: str = msgspec.field(default_factory=_password)
    nats_port: int = 0
    postgres_port: int = 0
    nats: Server | None = None
    postgres: Server | None = None
    nats_restarts: int = 0
    postgres_restarts: int = 0

    def server(self, name: Name) -> Server | None:
        return self.nats if name == "nats" else self.postgres


class DataDir:
    """One data directory, 0700. `nats/` and `postgres/` hold the servers' files, PostgreSQL's own below
    `cluster/`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start_lock = path / "start.lock"
        self.users_lock = path / "users.lock"
        self.state_file = path / "state.json"
        self.nats = path / "nats"
        self.postgres = path / "postgres"

    @classmethod
    def locate(cls, data_dir: str | Path | None) -> "DataDir":
        """The directory a user means, not created yet (but for a temporary one)."""
        if data_dir is None:
            return cls(Path(platformdirs.user_data_dir("cenote", appauthor=False)))
        if str(data_dir) == TEMPORARY:
            return cls(Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX)))
        return cls(Path(data_dir).expanduser().absolute())

    def create(self) -> None:
        """Make the directory ours and private.

        Raises:
            ServerStartError: it belongs to another user, or holds something else.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = set(os.listdir(self.path)) - {"lost+found"}
        owner = (self.start_lock if self.start_lock.exists() else self.path).stat().st_uid
        if owner != os.geteuid() and (os.geteuid() != 0 or self.start_lock.exists()):
            raise ServerStartError(
                f"{self.path} belongs to uid {owner}, this process runs as uid {os.geteuid()}",
                hint="run as that user, or give another data_dir",
            )
        if names - _NAMES and not names & {"start.lock", "state.json"}:
            raise ServerStartError(
                f"{self.path} is neither empty nor a data directory of cenote", hint="give another data_dir"
            )
        os.chmod(self.path, 0o700)
        for directory in (self.nats, self.postgres):
            directory.mkdir(mode=0o700, exist_ok=True)

    def load(self) -> State | None:
        """The state, None when there is none or it cannot be read (then passwords are made anew).

        Raises:
            ServerStartError: a newer cenote wrote it.
        """
        try:
            state = msgspec.json.decode(self.state_file.read_bytes(), type=State)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        if state.format != 1:
            raise ServerStartError(f"{self.state_file} was written by a newer cenote", hint="upgrade cenote")
        return state

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class Ledger:
    """The state while we hold start.lock: every change is on disk before the next step is taken."""

    def __init__(self, directory: DataDir, state: State) -> None:
        self._directory = directory
        self._guard = threading.Lock()  # both servers start at once, in two threads
        self.state = state

    def record(self, **changes: Any) -> None:
        with self._guard:
            self.state = msgspec.structs.replace(self.state, **changes)
            write_durably(self._directory.state_file, msgspec.json.encode(self.state))


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file as a whole, 0600, and let it survive a power cut."""
    draft = path.with_name(path.name + ".new")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
