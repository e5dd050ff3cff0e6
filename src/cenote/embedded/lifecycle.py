"""Starting what is missing and stopping what is not needed, for one data directory. Everything here runs
under start.lock, so there is one actor at a time in all processes.

Rewinds are prevented here, where we own the server: a KV store that was not closed cleanly
may have lost its last writes, and a sequence number must never be given out twice. Such a store is first
opened *in recovery*: on a random port, with throw-away credentials that no client has. The engine drains
every live entry into SQL and moves the stream past its high water; then the server is stopped and started
where clients wait for it.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from cenote.embedded import binaries, nats_server, ports, process
from cenote.embedded.account import Account, account_for
from cenote.embedded.binaries import Postgres
from cenote.embedded.locks import close_lock, lock, open_lock
from cenote.embedded.login import dsn, log_in
from cenote.embedded.nats_server import Access, Nats
from cenote.embedded.postgres_server import Cluster, space_hint
from cenote.embedded.process import Process, alive
from cenote.embedded.state import DataDir, Ledger, Name, Phase, Server, State
from cenote.embedded.waiting import blocking
from cenote.errors import CenoteError, ServerStartError
from cenote.limits import SERVER_ATTACH_S, SERVER_LOG_BYTES_MAX, SERVER_RESTART_S, SERVER_START_S

log = logging.getLogger("cenote.embedded")


class NatsAddress(NamedTuple):
    """Where a nats-server is and how to log in."""

    url: str
    user: str
    password: str


Recover = Callable[[NatsAddress, str], Awaitable[None]]


class Needs(NamedTuple):
    """What one user of the data directory asks for."""

    nats: bool
    postgres: bool
    nats_bin: str | Path | None
    postgres_bin: str | Path | None
    sync_interval_ms: int
    recover: Recover
    sql_dsn: str | None  # where recovery drains to when PostgreSQL is not ours


class Lifecycle:
    def __init__(self, directory: DataDir, needs: Needs, *, temporary: bool = False) -> None:
        self._directory = directory
        self._needs = needs
        self._temporary = temporary
        self._nats = Nats(directory, needs.sync_interval_ms)
        self._cluster = Cluster(directory)

    async def ensure(self, *, restarting: bool = False) -> State:
        """Attach to what runs and answers, start what does not; side by side, unless the store must be
        recovered.

        Raises:
            ServerStartError: a server cannot be started, or the recovery failed; the next call tries again.
        """
        state = await blocking(self._directory.load)
        lost = state is None
        ledger = Ledger(self._directory, state or State(temporary=self._temporary))
        if lost:
            await blocking(ledger.record)  # passwords are on disk before any server learns them
        postgres = None
        if self._needs.postgres:
            postgres = asyncio.ensure_future(self._ensure_postgres(ledger, restarting=restarting, lost=lost))
        try:
            if self._needs.nats:
                await self._ensure_nats(ledger, postgres, restarting=restarting)
            if postgres is not None:
                await postgres
        except BaseException:
            if postgres is not None:
                postgres.cancel()
                await asyncio.gather(postgres, return_exceptions=True)
            raise
        return ledger.state

    async def stop(self) -> list[Name]:
        """Stop both servers; the names of those that ran."""
        state = await blocking(self._directory.load)
        if state is None:
            return []
        ledger = Ledger(self._directory, state)
        ran = await asyncio.gather(self._stop_nats(ledger), self._stop_postgres(ledger))
        names: tuple[Name, Name] = ("nats", "postgres")
        return [name for name, did_run in zip(names, ran, strict=True) if did_run]

    async def _stop_nats(self, ledger: Ledger) -> bool:
        server = ledger.state.nats
        if server is None or not await blocking(alive, server.process):
            return False
        graceful = await blocking(self._nats.stop, server.process)
        if graceful and server.phase == "public" and not ledger.state.temporary:
            await blocking(self._nats.mark_clean)
        await blocking(ledger.record, nats=None)
        return True

    async def _stop_postgres(self, ledger: Ledger) -> bool:
        server = ledger.state.postgres
        if server is None or not await blocking(alive, server.process):
            return False
        await blocking(self._cluster.stop, server.process, keep=not ledger.state.temporary)
        await blocking(ledger.record, postgres=None)
        return True

    # --- NATS -----------------------------------------------------------------------------------------------

    async def _ensure_nats(
        self, ledger: Ledger, postgres: "asyncio.Future[None] | None", *, restarting: bool
    ) -> None:
        server = ledger.state.nats
        if server is not None and await blocking(alive, server.process):
            if server.phase != "recovery" and await self._attach_nats(ledger, server):
                return
            await blocking(self._nats.stop, server.process)
        binary = await blocking(binaries.nats_server, self._needs.nats_bin)
        async with _server_lock(self._nats.lock, "nats") as descriptor:
            await blocking(_rotate, self._nats.log)
            if self._nats.must_recover():
                if postgres is not None:
                    await postgres
                await self._recover(ledger, binary, descriptor)
            await self._start_nats(ledger, binary, descriptor)
        if restarting:
            await blocking(ledger.record, nats_restarts=ledger.state.nats_restarts + 1)

    async def _attach_nats(self, ledger: Ledger, server: Server) -> bool:
        version = await self._await_nats(server.process, _access(ledger.state), SERVER_ATTACH_S)
        if version is not None and server.phase != "public":  # its starter was killed meanwhile
            await blocking(ledger.record, nats=server.opened(version))
        return version is not None

    async def _start_nats(self, ledger: Ledger, binary: Path, descriptor: int) -> None:
        port = await blocking(ports.choose, ledger.state.nats_port)
        await blocking(ledger.record, nats_port=port)
        access = _access(ledger.state)
        born = await self._launch_nats(ledger, binary, access, descriptor, recovery=False)
        version = await self._await_nats(born.process, access, SERVER_START_S)
        if version is None:
            raise await self._failure("nats-server", born.process, self._nats.log)
        await blocking(ledger.record, nats=born.opened(version))

    async def _launch_nats(
        self, ledger: Ledger, binary: Path, access: Access, descriptor: int, *, recovery: bool
    ) -> Server:
        running = await blocking(self._nats.launch, binary, access, descriptor)
        born = _born(running, access.port, "recovery" if recovery else "starting")
        await blocking(ledger.record, nats=born)
        return born

    async def _await_nats(self, running: Process, access: Access, seconds: float) -> str | None:
        """The server's version as soon as it takes our password with JetStream on; None when it ended or time
        ran out."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and await blocking(alive, running):
            answer = await blocking(nats_server.answers, access)
            if answer is not None and answer.jetstream:
                return answer.version
            await asyncio.sleep(0.01)
        return None

    async def _recover(self, ledger: Ledger, binary: Path, descriptor: int) -> None:
        log.warning("the KV store in %s was not closed cleanly: draining it into SQL", self._directory.path)
        port = await blocking(ports.choose, 0)
        user, password = secrets.token_urlsafe(16), secrets.token_urlsafe(32)
        access = Access(f"{ledger.state.instance}-recovery", port, user, password)
        running = (await self._launch_nats(ledger, binary, access, descriptor, recovery=True)).process
        try:
            if await self._await_nats(running, access, SERVER_START_S) is None:
                raise await self._failure("nats-server", running, self._nats.log)
            address = NatsAddress(f"nats://127.0.0.1:{port}", user, password)
            await self._needs.recover(address, self._needs.sql_dsn or dsn(ledger.state))
        except CenoteError as error:
            if isinstance(error, ServerStartError):
                raise
            raise _recovery_failed(error) from error
        except Exception as error:
            raise _recovery_failed(error) from error
        finally:
            graceful = await blocking(self._nats.stop, running)
        if not graceful:
            raise _recovery_failed("nats-server did not close its store")

    # --- PostgreSQL -----------------------------------------------------------------------------------------

    async def _ensure_postgres(self, ledger: Ledger, *, restarting: bool, lost: bool) -> None:
        server = ledger.state.postgres
        if server is not None and await blocking(alive, server.process):
            version = await log_in(ledger.state, server.process, SERVER_ATTACH_S)
            if version is not None:
                if server.phase != "public":
                    await blocking(ledger.record, postgres=server.opened(version))
                return
            await blocking(self._cluster.stop, server.process)
        account = await blocking(account_for, self._cluster.data)
        binary = await blocking(binaries.postgres, self._needs.postgres_bin, account)
        self._cluster.check_version(binary)
        async with _server_lock(self._cluster.lock, "postgres", "initdb") as descriptor:
            await blocking(_rotate, self._cluster.log)
            await self._prepare_cluster(ledger, binary, account, descriptor, lost=lost)
            await self._start_postgres(ledger, binary, account, descriptor)
        if restarting:
            await blocking(ledger.record, postgres_restarts=ledger.state.postgres_restarts + 1)

    async def _prepare_cluster(
        self, ledger: Ledger, binary: Postgres, account: Account | None, descriptor: int, *, lost: bool
    ) -> None:
        password = ledger.state.superuser_password
        if not self._cluster.data.exists():
            sync = not ledger.state.temporary
            await blocking(self._cluster.create, binary, account, password, descriptor, sync=sync)
        elif lost:
            await blocking(self._cluster.reset_password, binary, account, password, descriptor)

    async def _start_postgres(
        self, ledger: Ledger, binary: Postgres, account: Account | None, descriptor: int
    ) -> None:
        """Start it, again while the backends of a killed server still hold its shared memory."""
        deadline = time.monotonic() + SERVER_RESTART_S
        while True:
            port = await blocking(ports.choose, ledger.state.postgres_port)
            since = self._cluster.log.stat().st_size if self._cluster.log.exists() else 0
            running = await blocking(self._cluster.launch, binary, account, port, descriptor)
            born = _born(running, port, "starting")
            await blocking(ledger.record, postgres=born, postgres_port=port)
            if await self._until_ready(running):
                break
            words = await blocking(process.tail, self._cluster.log, since)
            stale = "already exists" in words and self._cluster.forget_stale_pid()
            if not stale and ("shared memory" not in words or time.monotonic() > deadline):
                raise await self._failure("PostgreSQL", running, self._cluster.log, since)
            await asyncio.sleep(0.1)
        version = await log_in(ledger.state, running, SERVER_START_S)
        if version is None:
            raise await self._failure("PostgreSQL", running, self._cluster.log, since)
        await blocking(ledger.record, postgres=born.opened(version))

    async def _until_ready(self, running: Process) -> bool:
        deadline = time.monotonic() + SERVER_START_S
        while time.monotonic() < deadline and await blocking(alive, running):
            if self._cluster.is_ready(running):
                return True
            await asyncio.sleep(0.005)
        return False

    async def _failure(self, what: str, running: Process, file: Path, since: int = 0) -> ServerStartError:
        words = await blocking(process.tail, file, since)
        verb = "does not answer" if await blocking(alive, running) else "ended at its start"
        return ServerStartError(f"{what} {verb}, see {file}:\n{words}", hint=space_hint(words))


@contextlib.asynccontextmanager
async def _server_lock(path: Path, *programs: str) -> AsyncIterator[int]:
    """Hold a server's lock until a new server has inherited it.

    It is free as soon as the old server and its children are gone. Those of a killed postmaster take a
    moment; a server that state.json does not know (its starter was killed in between) is told to stop.
    """
    descriptor = open_lock(path)
    try:
        if await lock(descriptor, fcntl.LOCK_EX, 1):
            yield descriptor
            return
        for number in (signal.SIGINT, signal.SIGQUIT):
            for pid in await blocking(process.holders, path):
                if pid != os.getpid() and (process.program_of(pid) or "").startswith(programs):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            if await lock(descriptor, fcntl.LOCK_EX, SERVER_RESTART_S):
                yield descriptor
                return
        raise ServerStartError(
            f"another server still uses {path.parent}",
            hint=f"end the process that holds {path}; it may run in another container",
        )
    finally:
        close_lock(descriptor)


def _access(state: State) -> Access:
    return Access(f"cenote-{state.instance}", state.nats_port, nats_server.USER, state.nats_password)


def _born(running: Process, port: int, phase: Phase) -> Server:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Server(process=running, port=port, phase=phase, started_at=now, owner=os.getpid())


def _recovery_failed(why: object) -> ServerStartError:
    return ServerStartError(
        f"the KV store could not be drained into SQL: {why}",
        hint="nothing is lost; the next start tries again",
    )


def _rotate(file: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if file.stat().st_size > SERVER_LOG_BYTES_MAX:
            file.replace(file.with_name(file.name + ".1"))
