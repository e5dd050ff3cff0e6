"""Who flushes, and when: competes for the lease, works one shift after another (I13, I16; flow rules 8, 18)."""

import asyncio
import logging

from cenote.engine.core import Core
from cenote.engine.hand import held
from cenote.engine.lag import LagWindow
from cenote.engine.lease import Board, Lease
from cenote.engine.seconds import Seconds
from cenote.engine.shift import Shift
from cenote.errors import CenoteError, UnavailableError

log = logging.getLogger("cenote.engine")


class Flusher:
    """Waits for the lease, works shifts, keeps the board; meanwhile may flush beside whoever holds it."""

    def __init__(self, core: Core, lease: Lease, board: Board) -> None:
        self._core = core
        self._lease = lease
        self._board = board
        self._task: asyncio.Task[None] | None = None
        self.lag = LagWindow(core.config.health.window_s, core.config.flush.window_ms)
        self.shift: Shift | None = None
        self._seconds = Seconds(core, board, self.lag) if core.config.flush.active_max > 1 else None

    def start(self) -> None:
        """Begin to compete for the lease."""
        self._lease.listen()
        if self._seconds is not None:
            self._seconds.start()
        self._task = asyncio.create_task(self._run(), name="cenote-flusher")

    async def stop(self) -> None:
        """End the shift; what is in hand is delivered to the next flusher at once or after `ACK_WAIT_S`."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._seconds is not None:
            await self._seconds.stop()
        self._lease.close()

    async def _run(self) -> None:
        told = ""
        while True:
            try:
                if self._core.link.connected and self._core.stream.ours and await self._lease.acquire(self._board):
                    told = ""
                    await self._work()
            except (CenoteError, TimeoutError) as error:
                said = "out" if isinstance(error, UnavailableError) and error.lasting else str(error)
                if said != told:
                    log.warning("flushing pauses: %s", error)
                    told = said
            except Exception:
                log.exception("flushing met an error of its own and begins anew")
            await self._lease.pause()

    async def _work(self) -> None:
        """One shift. A primary holds no second slot: it gives that back before it begins, and competes again later."""
        if self._seconds is None:
            await self._one_shift()
            return
        await self._seconds.stop()
        try:
            await self._one_shift()
        finally:
            self._seconds.start()

    async def _one_shift(self) -> None:
        shift = self.shift = Shift(self._core, self._lease, self._board, self.lag)
        try:
            await held(self._core, self._lease, shift.work())
        finally:
            self.shift = None
