"""Embedded servers for a test session, held by a thread of their own so that any event loop may use them."""

import asyncio
import itertools
import os
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cenote.config import Config
from cenote.embedded.servers import Servers
from cenote.opening import start_servers

_numbers = itertools.count(1)


class TestServers:
    """Real servers in a private directory.

    Attributes:
        data_dir: where they keep their data; `cenote.open(data_dir=…)` attaches to them.
    """

    __test__ = False  # the name begins with Test; it is not a test case

    def __init__(self, data_dir: Path | str, **overrides: Any) -> None:
        self.data_dir = Path(data_dir)
        self._overrides = overrides
        self._ready: threading.Event = threading.Event()
        self._leave: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: BaseException | None = None
        self._servers: Servers | None = None
        self._thread = threading.Thread(target=self._hold, name="cenote-test-servers", daemon=True)

    def start(self) -> "TestServers":
        """Start them; returns once they answer. Raises what starting raised."""
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        return self

    def stop(self) -> None:
        """Stop them, unless another process still uses them."""
        if self._loop is not None and self._leave is not None:
            self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join()

    def fresh(self, **overrides: Any) -> dict[str, Any]:
        """Arguments for `cenote.open()`: these servers, and a namespace that nobody has used."""
        namespace = f"t{os.getpid()}_{next(_numbers)}"
        return {"data_dir": self.data_dir, "namespace": namespace, **self._overrides, **overrides}

    def by_url(self, *, kv_port: int | None = None, sql_port: int | None = None, **overrides: Any) -> dict[str, Any]:
        """The same by URL, where no process watches over the servers; ports: of fault proxies before them."""
        assert self._servers is not None
        address, dsn = self._servers.nats, self._servers.sql_dsn
        assert address is not None
        assert dsn is not None
        return {
            "namespace": self.fresh()["namespace"],
            "kv": _at_port(address.url, kv_port), "kv__user": address.user, "kv__password": address.password,
            "sql": _at_port(dsn, sql_port), "sql__migrate": "auto", **overrides,
        }  # fmt: skip

    @property
    def sql_dsn(self) -> str:
        """PostgreSQL's URL, for looking at the tables directly."""
        assert self._servers is not None
        return self._servers.sql_dsn or ""

    @property
    def info(self) -> dict[str, Any]:
        """Pids, addresses and versions, as they are now."""
        assert self._servers is not None
        return self._servers.info()

    def _hold(self) -> None:
        try:
            asyncio.run(self._use())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that started us
            self._error = error
            self._ready.set()

    async def _use(self) -> None:
        from cenote.config import load

        config: Config = load(None, overrides={"embedded__data_dir": str(self.data_dir), **self._overrides})
        self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
        servers = self._servers = await start_servers(config)
        self._ready.set()
        await self._leave.wait()
        await servers.release()


def _at_port(url: str, port: int | None) -> str:
    parts = urlsplit(url)
    return url if port is None else parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{port}")).geturl()
