"""Both servers of one data directory: starting what is missing, stopping what is not needed. Everything here
runs under start.lock, so there is one actor at a time in all processes."""

import asyncio

from cenote.embedded.nats_keeper import NatsKeeper
from cenote.embedded.needs import Needs
from cenote.embedded.postgres_keeper import PostgresKeeper
from cenote.embedded.state import DataDir, Ledger, Name, State
from cenote.embedded.waiting import blocking


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
        """Stop both servers; the names of those that ran."""
        state = await blocking(self._directory.load)
        if state is None:
            return []
        ledger = Ledger(self._directory, state)
        ran = await asyncio.gather(self._nats.stop(ledger), self._postgres.stop(ledger))
        names: tuple[Name, Name] = ("nats", "postgres")
        return [name for name, did_run in zip(names, ran, strict=True) if did_run]

    async def _ensure_postgres(self, ledger: Ledger, *, lost: bool, restarting: bool) -> None:
        if await self._postgres.ensure(ledger, lost=lost) and restarting:
            await blocking(ledger.record, postgres_restarts=ledger.state.postgres_restarts + 1)
