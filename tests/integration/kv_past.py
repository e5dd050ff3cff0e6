"""A nats-server of a test's own, beside the session's PostgreSQL, whose store can be put back to an earlier moment."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from kv_server import USER, KvServer, running

import cenote
from cenote.store import Store
from cenote.testing import TestServers
from witness import reached


class Past:
    """The server, the arguments for stores on it, and its way back."""

    def __init__(self, server: KvServer, servers: TestServers) -> None:
        self.server = server
        self.settings: dict[str, Any] = {
            "kv": server.url, "kv__user": USER, "kv__password": server.password, "sql": servers.sql_dsn,
            "sql__migrate": "auto", "namespace": servers.fresh()["namespace"], "flush__drain_ms": 0,
        }  # fmt: skip

    def open(self, **overrides: Any) -> Any:
        """One more process's store; it flushes unless it is told not to."""
        return cenote.open(**(self.settings | overrides))

    def remember(self) -> None:
        """The store as a power loss at this moment would leave it."""
        self.server.freeze()
        shutil.copytree(self.server.directory / "store", self.server.directory / "older")
        self.server.thaw()

    def go_back(self) -> None:
        """Lose everything since."""
        self.server.kill()
        shutil.rmtree(self.server.directory / "store")
        (self.server.directory / "older").rename(self.server.directory / "store")
        self.server.start()

    async def rewind(self, *stores: Store) -> None:
        """Lose everything since, and wait until these stores are connected again."""
        before = [store._core.link.generation for store in stores]
        await asyncio.to_thread(self.go_back)
        for store, generation in zip(stores, before, strict=True):
            await again(store, generation)


async def again(store: Store, generation: int) -> None:
    """Wait for a connection after the one of that number."""
    core = store._core
    await reached(lambda: core.link.generation > generation and core.stream.ours, "the next connection")


@contextmanager
def past(directory: Path, servers: TestServers) -> Iterator[Past]:
    """The server, running."""
    with running(directory) as server:
        yield Past(server, servers)


@asynccontextmanager
async def nobody_flushes(store: Store) -> AsyncIterator[None]:
    """The store's flusher stands aside."""
    flusher = store._machines.flusher
    assert flusher is not None
    await flusher.stop()
    yield
    flusher.start()
