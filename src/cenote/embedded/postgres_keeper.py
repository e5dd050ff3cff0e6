"""Keeping the PostgreSQL of a data directory, under start.lock."""

import asyncio
import time

from cenote.embedded import binaries, ports
from cenote.embedded.account import Account, account_for
from cenote.embedded.binaries import Postgres
from cenote.embedded.locks import end_unknown, server_lock
from cenote.embedded.login import log_in
from cenote.embedded.needs import Needs
from cenote.embedded.postgres_server import Cluster
from cenote.embedded.process import Process, alive, rotate, size, tail
from cenote.embedded.state import DataDir, Ledger, Server
from cenote.embedded.trouble import not_started
from cenote.embedded.waiting import blocking, settle
from cenote.limits import SERVER_ATTACH_S, SERVER_RESTART_S, SERVER_START_S

_PROGRAMS = ("postgres", "initdb")  # what the names of programs that may hold server.lock begin with


class PostgresKeeper:
    def __init__(self, directory: DataDir, needs: Needs) -> None:
        self._needs = needs
        self._files = Cluster(directory)

    async def ensure(self, ledger: Ledger, *, lost: bool) -> bool:
        """Attach, or start; `lost`: the passwords are new. Whether it had to be started."""
        server = ledger.state.postgres
        if server is not None and await blocking(alive, server.process):
            if await self._attach(ledger, server):
                return False
            await blocking(self._files.stop, server.process)
        account = await blocking(account_for, self._files.data)
        binary = await blocking(binaries.postgres, self._needs.postgres_bin, account)
        self._files.check_version(binary)
        async with server_lock(self._files.lock, *_PROGRAMS) as descriptor:
            await blocking(rotate, self._files.log)
            password = ledger.state.superuser_password
            if not self._files.data.exists():
                sync = not ledger.state.temporary
                await blocking(self._files.create, binary, account, password, descriptor, sync=sync)
            elif lost:
                await blocking(self._files.reset_password, binary, account, password, descriptor)
            await self._start(ledger, binary, account, descriptor)
        return True

    async def stop(self, ledger: Ledger) -> bool:
        """Stop it; whether it ran."""
        server = ledger.state.postgres
        if server is None or not await blocking(alive, server.process):
            return False
        await blocking(self._files.stop, server.process, keep=not ledger.state.temporary)
        await blocking(ledger.record, postgres=None)
        return True

    async def end_unknown(self) -> None:
        await end_unknown(self._files.lock, *_PROGRAMS)

    async def _attach(self, ledger: Ledger, server: Server) -> bool:
        version = await log_in(ledger.state, server.process, SERVER_ATTACH_S)
        if version is not None and server.phase != "public":  # its starter was killed meanwhile
            await blocking(ledger.record, postgres=server.opened(version))
        return version is not None

    async def _start(self, ledger: Ledger, binary: Postgres, account: Account | None, descriptor: int) -> None:
        """Start it, again while the backends of a killed server still hold its shared memory."""
        deadline = time.monotonic() + SERVER_RESTART_S
        port = await blocking(ports.choose, ledger.state.postgres_port)
        while True:
            since = size(self._files.log)
            born = await settle(self._launch(ledger, binary, account, port, descriptor))
            running = born.process
            if await self._until_ready(running):
                break
            words = tail(self._files.log, since)
            if ports.was_taken(words):
                port = await blocking(ports.choose, 0)
            elif not self._may_try_again(words, deadline):
                raise not_started("PostgreSQL", running, self._files.log, since)
            await asyncio.sleep(0.1)
        version = await log_in(ledger.state, running, SERVER_START_S)
        if version is None:
            raise not_started("PostgreSQL", running, self._files.log, since)
        await blocking(ledger.record, postgres=born.opened(version))

    async def _launch(
        self, ledger: Ledger, binary: Postgres, account: Account | None, port: int, descriptor: int
    ) -> Server:
        """Start it and note it: one step that is never cancelled in the middle."""
        running = await blocking(self._files.launch, binary, account, port, descriptor)
        born = Server.born(running, port, "starting")
        try:
            await blocking(ledger.record, postgres=born, postgres_port=port)
        except OSError:  # nobody would know of it
            await blocking(self._files.stop, running)
            raise
        return born

    def _may_try_again(self, words: str, deadline: float) -> bool:
        if '"postmaster.pid" already exists' in words:
            return self._files.forget_stale_pid()
        return "shared memory block" in words and time.monotonic() < deadline

    async def _until_ready(self, running: Process) -> bool:
        deadline = time.monotonic() + SERVER_START_S
        while time.monotonic() < deadline and await blocking(alive, running):
            if self._files.is_ready(running):
                return True
            await asyncio.sleep(0.005)
        return False
