"""One private nats-server: its configuration, whether it answers, and a stop that is known to be clean.

Authority: `nats/clean` claims that the store on disk is complete. It is written after a graceful stop whose
files were synced, and removed, durably, before the next start. Without it the store may have lost its last
writes.
"""

import contextlib
import json
import os
import signal
import socket
from pathlib import Path
from typing import NamedTuple

from cenote.embedded import process
from cenote.embedded.process import Process, Spawn
from cenote.embedded.state import DataDir, sync_directory, write_durably
from cenote.limits import SERVER_STOP_S

USER = "cenote"
_GOODBYE = b"Server Exiting"  # nats-server's last log line after it has closed its store


class Access(NamedTuple):
    """How clients reach this server; `name` tells it from a stranger on the same port."""

    name: str
    port: int
    user: str
    password: str


class Answer(NamedTuple):
    """What a server said: its version, and whether JetStream is on."""

    version: str
    jetstream: bool


_CONFIG = """\
# Written by cenote at every start.
server_name: "{name}"
host: "127.0.0.1"
port: {port}
max_payload: 1MB
jetstream {{
  store_dir: "{store}"
  max_memory_store: 256MB
  max_file_store: 1TB
  sync_interval: {sync}
}}
authorization {{
  user: "{user}"
  password: "{password}"
}}
"""


class Nats:
    """The files and the process of the nats-server of one data directory."""

    def __init__(self, directory: DataDir, sync_interval_ms: int) -> None:
        self.directory = directory.nats
        self.store = directory.nats / "store"
        self.lock = directory.nats / "server.lock"
        self.log = directory.nats / "nats.log"
        self._clean = directory.nats / "clean"
        self._sync = f'"{sync_interval_ms}ms"' if sync_interval_ms else "always"

    def must_recover(self) -> bool:
        """Whether the store was used and not closed cleanly. Holds for a store without streams too: a power
        cut may have taken them, and their sequences must not be given out again."""
        return self.store.exists() and not self._clean.exists()

    def launch(self, binary: Path, access: Access, lock: int) -> Process:
        """Start it; the clean marker is gone, on disk, before."""
        with contextlib.suppress(FileNotFoundError):
            self._clean.unlink()
        self.store.mkdir(mode=0o700, exist_ok=True)
        sync_directory(self.directory)
        config = self.directory / "server.conf"
        text = _CONFIG.format(store=_quoted(self.store), sync=self._sync, **access._asdict())
        write_durably(config, text.encode())
        return process.spawn([str(binary), "-c", str(config)], Spawn(self.log, lock))

    def stop(self, running: Process) -> bool:
        """Stop it; whether it went gracefully, by its own last words."""
        since = process.size(self.log)
        gone = process.stop(running, [(signal.SIGINT, SERVER_STOP_S), (signal.SIGKILL, 5)])
        if not gone or not self.log.exists():
            return False
        with self.log.open("rb") as log:
            log.seek(since)
            return _GOODBYE in log.read()

    def mark_clean(self) -> None:
        """After a graceful stop: sync the store, then claim that it is complete."""
        for parent, _, names in os.walk(self.store):
            for name in names:
                _sync_file(Path(parent) / name)
            sync_directory(Path(parent))
        write_durably(self._clean, b"")


def answers(access: Access, seconds: float = 2) -> Answer | None:
    """Ask the server on this port who it is and whether it takes our password; None when it is not ours.

    The password is sent only to a server that gave our name.
    """
    try:
        with socket.create_connection(("127.0.0.1", access.port), timeout=seconds) as link:
            lines = link.makefile("rb")
            verb, _, text = lines.readline(65_536).partition(b" ")
            info = json.loads(text) if verb == b"INFO" else {}
            if info.get("server_name") != access.name:
                return None
            login = {"user": access.user, "pass": access.password, "verbose": False, "lang": "python"}
            link.sendall(b"CONNECT %b\r\nPING\r\n" % json.dumps(login).encode())
            if lines.readline(4_096).strip() != b"PONG":
                return None
            return Answer(str(info["version"]), bool(info.get("jetstream")))
    except (OSError, ValueError):
        return None


def _quoted(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
