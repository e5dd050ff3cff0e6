"""Who flushes, and when: competes for the lease, works one shift after another (I13, I16; flow rules 8, 18)."""

import asyncio
import logging

from cenote.engine.core import Core
from cenote.engine.hand import ShiftOver
from cenote.engine.lag import LagWindow
from cenote.engine.lease import Board, Lease
from cenote.engine.rewind import Rewound, begin
from cenote.engine.shift import Shift
from cenote.errors import CenoteError

log = logging.getLogger("cenote.engine")


class Flusher:
    """Waits for the lease, works shifts, keeps the board."""

    def __init__(self, core: Core, lease: Lease, board: Board) -> None:
        self._core = core
        self._lease = lease
        self._board = board
        self._task: asyncio.Task[None] | None = None
        self.lag = LagWindow(core.config.health.window_s, core.config.flush.window_ms)
        self.shift: Shift | None = None

    def start(self) -> None:
        """Begin to compete for the lease."""
        self._lease.listen()
        self._task = asyncio.create_task(self._run(), name="cenote-flusher")

    async def stop(self) -> None:
        """End the shift; what is in hand is delivered to the next flusher at once or after `ACK_WAIT_S`."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._lease.close()

    async def _run(self) -> None:
        told = ""
        while True:
            try:
                if self._core.link.connected and self._core.stream.ours and await self._lease.acquire(self._board):
                    told = ""
                    await self._work()
            except (CenoteError, TimeoutError) as error:
                if str(error) != told:
                    log.warning("flushing pauses: %s", error)
                    told = str(error)
            except Exception:
                log.exception("flushing met an error of its own and begins anew")
            await self._lease.pause()

    async def _work(self) -> None:
        shift = self.shift = Shift(self._core, self._lease, self._board, self.lag)
        leaving = False
        try:
            await shift.work()
        except asyncio.CancelledError:
            leaving = True
            raise
        except ShiftOver as over:
            log.info("a flusher's shift ends: %s", over)
        except Rewound as rewound:
            log.warning("%s: an epoch begins", rewound)
            await begin(self._core, rewound)
        finally:
            self.shift = None
            self._core.durability.hurry = None
            if self._core.link.connected and self._core.stream.ours:
                await self._lease.release(leaving=leaving)
