"""The servers of one data directory as one user sees them: acquire, watch over, release.

Each user holds a lease, a shared lock on users.lock; the last to leave stops the servers. Each user also
watches them: whoever first sees one dead restarts it, on the same port and with the same passwords.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cenote.embedded import nats_server
from cenote.embedded.lifecycle import Lifecycle
from cenote.embedded.locks import close_lock, exclusive, lock, open_lock, try_lock
from cenote.embedded.login import dsn
from cenote.embedded.needs import NatsAddress, Needs, Recover
from cenote.embedded.process import LOOK_IS_CHEAP, alive, deathbed
from cenote.embedded.state import TEMPORARY, TEMPORARY_PREFIX, DataDir, Name, State
from cenote.embedded.trouble import explained
from cenote.embedded.waiting import blocking, settle
from cenote.errors import CenoteError, ServerStartError
from cenote.limits import (
    SERVER_RESTART_DELAY_MS_MAX,
    SERVER_RESTART_DELAY_MS_MIN,
    SERVER_STABLE_S,
    SERVER_WATCH_MS,
    SERVER_WATCH_TOLD_MS,
)

log = logging.getLogger("cenote.embedded")

_NAMES: tuple[Name, ...] = ("nats", "postgres")
_dice = random.Random()  # its own: a program that seeds the global one must get what it expects
_POKED_LOOKS = 10  # a killed server's sockets close some milliseconds before it counts as dead …
_POKED_LOOK_S = 0.02  # … so a poke looks this often


class Servers:
    """A lease on the running servers. Addresses may change when a restarted server finds its port taken."""

    def __init__(self, directory: DataDir, needs: Needs, lifecycle: Lifecycle, lease: int, state: State) -> None:
        self._directory = directory
        self._needs = needs
        self._lifecycle = lifecycle
        self._lease: int | None = lease
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._poked = asyncio.Event()
        self._trouble: str | None = None
        self._watcher = asyncio.create_task(self._watch(), name="cenote-embedded-watch")

    @property
    def data_dir(self) -> Path:
        return self._directory.path

    @property
    def nats(self) -> NatsAddress | None:
        """The KV server's address, None when it is not ours."""
        if not self._needs.nats:
            return None
        url = f"nats://127.0.0.1:{self._state.nats_port}"
        return NatsAddress(url, nats_server.USER, self._state.nats_password)

    @property
    def sql_dsn(self) -> str | None:
        """The connection string of our PostgreSQL, None when it is not ours."""
        return dsn(self._state) if self._needs.postgres else None

    @property
    def restarts(self) -> dict[Name, int]:
        """How often a watcher, of any process, has restarted each server of this data directory."""
        return {"nats": self._state.nats_restarts, "postgres": self._state.postgres_restarts}

    def info(self) -> dict[str, Any]:
        """What `cenote status --json` says about the servers."""
        return {**describe(self._directory, self._state, self._wanted()), "trouble": self._trouble}

    def poke(self) -> None:
        """A connection was lost: look now whether a server died. May be called from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and so are we
            self._loop.call_soon_threadsafe(self._poked.set)

    async def release(self) -> None:
        """Give the lease back; the last user stops the servers. Completes even when cancelled."""
        if self._lease is None:
            return
        lease, self._lease = self._lease, None
        self._watcher.cancel()
        await asyncio.gather(self._watcher, return_exceptions=True)
        await settle(_leave(self._directory, self._lifecycle, lease))

    def _wanted(self) -> list[Name]:
        return [name for name in _NAMES if getattr(self._needs, name)]

    async def _watch(self) -> None:
        """Look after the servers for as long as we live. A failed restart is tried again, ever more
        slowly."""
        streak, healthy_since = 0, time.monotonic()
        while True:
            await self._until_one_died()
            if time.monotonic() - healthy_since > SERVER_STABLE_S:
                streak = 0
            if streak:
                wait_ms = min(SERVER_RESTART_DELAY_MS_MIN << min(streak, 16), SERVER_RESTART_DELAY_MS_MAX)
                await asyncio.sleep(wait_ms / 1000 * _dice.uniform(0.7, 1))
            streak += 1
            try:
                await self._restart()
            except ServerStartError as error:
                self._trouble = str(error)
                log.error("cannot restart an embedded server: %s", error)
            except Exception:
                self._trouble = "the watch failed, see the log"
                log.exception("cannot look after the embedded servers")
            else:
                self._trouble, healthy_since = None, time.monotonic()

    async def _until_one_died(self) -> None:
        with self._told_of_deaths() as told:
            await self._look_until_one_died(SERVER_WATCH_TOLD_MS if told else SERVER_WATCH_MS)

    async def _look_until_one_died(self, pause_ms: int) -> None:
        looks = 0
        while await self._all_live():
            seconds = _POKED_LOOK_S if looks else pause_ms / 1000 * _dice.uniform(0.8, 1.2)
            looks = max(0, looks - 1)
            # Not wait_for: Python 3.11's swallows a cancellation that comes together with the event, and the close of a
            # store brings both.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._poked.wait()
                self._poked.clear()
                looks = _POKED_LOOKS

    @contextlib.contextmanager
    def _told_of_deaths(self) -> Iterator[bool]:
        """Be poked by the kernel when one of them ends; False when it cannot: hundreds of users that look for
        themselves, each some times a second, are a good part of what an idle process costs."""
        servers = [self._state.server(name) for name in self._wanted()]
        found = [None if server is None else deathbed(server.process) for server in servers]
        beds = [bed for bed in found if bed is not None]
        for bed in beds:
            self._loop.add_reader(bed, self._ended, bed)
        try:
            yield len(beds) == len(servers)
        finally:
            for bed in beds:
                self._loop.remove_reader(bed)
                os.close(bed)

    def _ended(self, bed: int) -> None:
        self._loop.remove_reader(bed)  # it stays readable
        self._poked.set()

    async def _all_live(self) -> bool:
        servers = [self._state.server(name) for name in self._wanted()]

        def look() -> bool:
            return all(server is not None and alive(server.process) for server in servers)

        # On Linux it reads two lines of /proc, which costs less than the way to a thread and back.
        return look() if LOOK_IS_CHEAP else await blocking(look)

    async def _restart(self) -> None:
        with explained(self._directory.path):
            async with exclusive(self._directory.start_lock):
                before = self._state
                self._state = await self._lifecycle.ensure(restarting=True)
        for name in self._wanted():
            server = self._state.server(name)
            if server is not None and server != before.server(name):
                log.warning("%s had died and runs again as pid %d", name, server.process.pid)


async def acquire(
    *,
    data_dir: str | Path | None,
    nats: bool,
    postgres: bool,
    nats_bin: str | Path | None = None,
    postgres_bin: str | Path | None = None,
    sync_interval_ms: int,
    recover: Recover,
    sql_dsn: str | None = None,
) -> Servers:
    """Become a user of the data directory's servers; those that do not run yet are started.

    Args:
        data_dir: None = the platform's user data directory, ":temporary:" = a fresh one that
            its last user removes.
        nats, postgres: which of the two are needed.
        recover: called with the address of the KV server and the DSN to drain into, before a KV store that
        was not
            closed cleanly is opened to clients; no stream may exist in it yet.
        sql_dsn: the PostgreSQL to drain into when `postgres` is false.

    Raises:
        ServerStartError: a server, the directory or the recovery failed; nothing keeps running because of us.
    """
    if nats and not postgres and sql_dsn is None:
        raise ValueError("an embedded KV server needs a PostgreSQL to drain into: postgres=True or sql_dsn")
    needs = Needs(nats, postgres, nats_bin, postgres_bin, sync_interval_ms, recover, sql_dsn)
    temporary = str(data_dir) == TEMPORARY
    if temporary:
        await sweep()
    directory = DataDir.locate(data_dir)
    lifecycle = Lifecycle(directory, needs, temporary=temporary)
    with explained(directory.path):
        await blocking(directory.create)
        lease = open_lock(directory.users_lock)
        try:
            await lock(lease, fcntl.LOCK_SH)
            async with exclusive(directory.start_lock):
                state = await lifecycle.ensure()
        except BaseException:
            with contextlib.suppress(OSError, CenoteError):  # the first error is the one to tell
                await settle(_leave(directory, lifecycle, lease))
            raise
    servers = Servers(directory, needs, lifecycle, lease, state)
    log.info("embedded servers in %s: %s", directory.path, _summary(servers.info()))
    return servers


async def sweep() -> None:
    """Stop and remove what killed users of temporary directories left behind; never one that is in use."""
    for directory in await blocking(_temporary_directories):
        with contextlib.suppress(OSError):
            lease = open_lock(directory.users_lock)
            if try_lock(lease, fcntl.LOCK_EX):
                await _leave(directory, stopper(directory), lease)
            else:
                close_lock(lease)


def _temporary_directories() -> list[DataDir]:
    paths = Path(tempfile.gettempdir()).glob(f"{TEMPORARY_PREFIX}*/state.json")
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            directory = DataDir(path.parent)
            state = directory.load() if path.parent.lstat().st_uid == os.geteuid() else None
            if state is not None and state.temporary:
                found.append(directory)
    return found


async def _leave(directory: DataDir, lifecycle: Lifecycle, lease: int) -> None:
    """Drop a lease; nobody else has one: stop the servers."""
    try:
        async with exclusive(directory.start_lock):
            fcntl.flock(lease, fcntl.LOCK_UN)
            if try_lock(lease, fcntl.LOCK_EX):
                await lifecycle.stop()
                state = directory.load()
                if state is not None and state.temporary:
                    await blocking(directory.remove)
    finally:
        close_lock(lease)


async def _refuse(address: NatsAddress, dsn_text: str) -> None:
    raise ServerStartError("this process may only stop servers")


_NOTHING = Needs(False, False, None, None, 0, _refuse, None)


def stopper(directory: DataDir) -> Lifecycle:
    """A life cycle that starts nothing."""
    return Lifecycle(directory, _NOTHING)


def describe(directory: DataDir, state: State, names: list[Name]) -> dict[str, Any]:
    restarts = {"nats": state.nats_restarts, "postgres": state.postgres_restarts}
    servers: dict[str, Any] = {}
    for name in names:
        server = state.server(name)
        servers[name] = server and {
            "pid": server.process.pid,
            "address": f"127.0.0.1:{server.port}",
            "version": server.version,
            "started_at": server.started_at,
            "owner": server.owner,
            "phase": server.phase,
            "restarts": restarts[name],
        }
    return {
        "data_dir": str(directory.path),
        "instance": state.instance,
        "temporary": state.temporary,
        **servers,
    }


def _summary(info: dict[str, Any]) -> str:
    parts = [f"{name} {info[name]['version']} at {info[name]['address']}" for name in _NAMES if info.get(name)]
    return ", ".join(parts)
