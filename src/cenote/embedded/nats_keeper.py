"""Keeping the nats-server of a data directory, under start.lock.

Rewinds are prevented here, where we own the server: a KV store that was not closed cleanly may have lost its
last writes, and a sequence number must never be given out twice. Such a store is first opened *in recovery*:
on a random port, with throw-away credentials that no client has. The engine drains every live entry into SQL
and moves the stream past its high water; then the server is stopped, and started where clients wait for it.
"""

import asyncio
import logging
import secrets
import time
from pathlib import Path

from cenote.embedded import binaries, nats_server, ports
from cenote.embedded.locks import end_unknown, server_lock
from cenote.embedded.login import dsn
from cenote.embedded.nats_server import Access, Nats
from cenote.embedded.needs import NatsAddress, Needs
from cenote.embedded.process import Process, alive, rotate, size, tail
from cenote.embedded.state import DataDir, Ledger, Phase, Server, State
from cenote.embedded.trouble import not_started
from cenote.embedded.waiting import blocking, settle
from cenote.errors import ServerStartError
from cenote.limits import SERVER_ATTACH_S, SERVER_START_S

log = logging.getLogger("cenote.embedded")

_PROGRAMS = ("nats",)  # what the names of programs that may hold server.lock begin with


class NatsKeeper:
    def __init__(self, directory: DataDir, needs: Needs) -> None:
        self._needs = needs
        self._files = Nats(directory, needs.sync_interval_ms)

    async def ensure(self, ledger: Ledger, postgres: "asyncio.Future[None] | None") -> bool:
        """Attach, or start; `postgres` is awaited before a recovery. Whether it had to be started."""
        server = ledger.state.nats
        if server is not None and await blocking(alive, server.process):
            if server.phase != "recovery" and await self._attach(ledger, server):
                return False
            await blocking(self._files.stop, server.process)
        binary = await blocking(binaries.nats_server, self._needs.nats_bin)
        async with server_lock(self._files.lock, *_PROGRAMS) as descriptor:
            await blocking(rotate, self._files.log)
            if self._files.must_recover():
                if postgres is not None:
                    await postgres
                await self._recover(ledger, binary, descriptor)
            await self._start(ledger, binary, descriptor)
        return True

    async def stop(self, ledger: Ledger) -> bool:
        """Stop it, and say so in the directory when its store is complete. Whether it ran."""
        server = ledger.state.nats
        if server is None or not await blocking(alive, server.process):
            return False
        graceful = await blocking(self._files.stop, server.process)
        if graceful and server.phase == "public" and not ledger.state.temporary:
            await blocking(self._files.mark_clean)
        await blocking(ledger.record, nats=None)
        return True

    async def end_unknown(self) -> None:
        await end_unknown(self._files.lock, *_PROGRAMS)

    async def _attach(self, ledger: Ledger, server: Server) -> bool:
        version = await self._await_answer(server.process, _access(ledger.state), SERVER_ATTACH_S)
        if version is not None and server.phase != "public":  # its starter was killed meanwhile
            await blocking(ledger.record, nats=server.opened(version))
        return version is not None

    async def _start(self, ledger: Ledger, binary: Path, descriptor: int) -> None:
        port = await blocking(ports.choose, ledger.state.nats_port)
        while True:
            since = size(self._files.log)
            await blocking(ledger.record, nats_port=port)
            access = _access(ledger.state)
            born = await settle(self._launch(ledger, binary, access, descriptor, "starting"))
            version = await self._await_answer(born.process, access, SERVER_START_S)
            if version is not None:
                break
            if not ports.was_taken(tail(self._files.log, since)):
                raise not_started("nats-server", born.process, self._files.log, since)
            port = await blocking(ports.choose, 0)
        await blocking(ledger.record, nats=born.opened(version))

    async def _launch(self, ledger: Ledger, binary: Path, access: Access, descriptor: int, phase: Phase) -> Server:
        """Start it and note it: one step that is never cancelled in the middle."""
        running = await blocking(self._files.launch, binary, access, descriptor)
        born = Server.born(running, access.port, phase)
        try:
            await blocking(ledger.record, nats=born)
        except OSError:  # nobody would know of it
            await blocking(self._files.stop, running)
            raise
        return born

    async def _await_answer(self, running: Process, access: Access, seconds: float) -> str | None:
        """The version, as soon as the server takes our password with JetStream on; None when it ended or time
        ran out."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and await blocking(alive, running):
            answer = await blocking(nats_server.answers, access)
            if answer is not None and answer.jetstream:
                return answer.version
            await asyncio.sleep(0.01)
        return None

    async def _recover(self, ledger: Ledger, binary: Path, descriptor: int) -> None:
        log.warning("the KV store %s was not closed cleanly: draining it into SQL", self._files.store)
        since = size(self._files.log)
        port = await blocking(ports.choose, 0)
        user, password = secrets.token_urlsafe(16), secrets.token_urlsafe(32)
        access = Access(f"{ledger.state.instance}-recovery", port, user, password)
        running = (await settle(self._launch(ledger, binary, access, descriptor, "recovery"))).process
        try:
            if await self._await_answer(running, access, SERVER_START_S) is None:
                raise not_started("nats-server", running, self._files.log, since)
            address = NatsAddress(f"nats://127.0.0.1:{port}", user, password)
            await self._needs.recover(address, self._needs.sql_dsn or dsn(ledger.state))
        except ServerStartError:
            raise
        except Exception as error:
            raise _not_recovered(error) from error
        finally:
            graceful = await blocking(self._files.stop, running)
            await blocking(ledger.record, nats=None)
        if not graceful:
            raise _not_recovered("nats-server did not close its store")


def _access(state: State) -> Access:
    return Access(f"cenote-{state.instance}", state.nats_port, nats_server.USER, state.nats_password)


def _not_recovered(why: object) -> ServerStartError:
    return ServerStartError(
        f"the KV store could not be drained into SQL: {why}",
        hint="nothing is lost; the next start tries again",
    )
