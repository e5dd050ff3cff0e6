"""Both servers of one data directory: starting what is missing, stopping what is not needed. Everything here
runs under start.lock, so there is one actor at a time in all processes."""

import asyncio
import logging

from cenote.embedded.nats_keeper import NatsKeeper
from cenote.embedded.needs import Needs
from cenote.embedded.postgres_keeper import PostgresKeeper
from cenote.embedded.state import DataDir, Ledger, Name, State
from cenote.embedded.waiting import blocking

log = logging.getLogger("cenote.embedded")


class Lifecycle:
    def __init__(self, directory: DataDir, needs: Needs, *, temporary: bool = False) -> None:
        self._directory = directory
        self._needs = needs
        self._temporary = temporary
        self._nats = NatsKeeper(directory, needs)
        self._postgres = PostgresKeeper(directory, needs)

    async def ensure(self, *, restarting: bool = False) -> State:
        """Attach to what runs and answers, start what does not; side by side, unless the store must be
        recovered.

        Raises:
            ServerStartError: a server cannot be started, or the recovery failed; the next call tries again.
        """
        known = await blocking(self._directory.load)
        ledger = Ledger(self._directory, known or State(temporary=self._temporary))
        if known is None:
            await blocking(ledger.record)  # passwords are on disk before any server learns them
        postgres = None
        if self._needs.postgres:
            work = self._ensure_postgres(ledger, lost=known is None, restarting=restarting)
            postgres = asyncio.ensure_future(work)
        try:
            if self._needs.nats and await self._nats.ensure(ledger, postgres) and restarting:
                await blocking(ledger.record, nats_restarts=ledger.state.nats_restarts + 1)
            if postgres is not None:
                await postgres
        except BaseException:
            if postgres is not None:
                postgres.cancel()
                await asyncio.gather(postgres, return_exceptions=True)
            raise
        return ledger.state

    async def stop(self) -> list[Name]:
        """Stop both servers, known or not; the names of the known ones that ran.

        That they are stopped may not be noted, on a full disk. This is harmless: a pid in state.json is believed
        only while its process lives, and without the clean marker the next start recovers the store.
        """
        state = await blocking(self._directory.load)
        ran = await self._stop_known(Ledger(self._directory, state)) if state is not None else []
        await self._nats.end_unknown()
        await self._postgres.end_unknown()
        return ran

    async def _stop_known(self, ledger: Ledger) -> list[Name]:
        names: tuple[Name, Name] = ("nats", "postgres")
        stops = (self._nats.stop(ledger), self._postgres.stop(ledger))
        ran = []
        for name, outcome in zip(names, await asyncio.gather(*stops, return_exceptions=True), strict=True):
            if isinstance(outcome, OSError):
                log.warning("stopped %s, but cannot note it in %s: %s", name, self._directory.path, outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
            if outcome:
                ran.append(name)
        return ran

    async def _ensure_postgres(self, ledger: Ledger, *, lost: bool, restarting: bool) -> None:
        if await self._postgres.ensure(ledger, lost=lost) and restarting:
            await blocking(ledger.record, postgres_restarts=ledger.state.postgres_restarts + 1)
