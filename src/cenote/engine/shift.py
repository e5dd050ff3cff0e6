"""The write-behind's primary: who holds the first lease names the durable, mends, evicts and collects, and flushes (I1,
I11; flow rules 2, 4, 5, 12).

The durable consumer is the dirty set. One *shift* is one tenure: one lease, one connection, one epoch, one server
start. Whatever of these changes ends the shift, and everything in hand is dropped (`engine/hand.py`).
"""

import asyncio
import logging

from cenote import limits
from cenote.engine.chores import keep_doing
from cenote.engine.collector import Collector
from cenote.engine.core import Core
from cenote.engine.counter_flush import CounterFlush
from cenote.engine.epoch import DURABLE_KEY
from cenote.engine.evictor import Evictor
from cenote.engine.hand import OVERLAP, Hand, ShiftOver, Tenure
from cenote.engine.incarnation import durable_prefix, incarnation
from cenote.engine.lag import LagWindow
from cenote.engine.lease import Board, Lease
from cenote.engine.lineage import Lineage
from cenote.engine.mender import mend_once, take_over
from cenote.engine.waiting import announce_mended
from cenote.kv.consumer import delete_consumer, ensure_consumer
from cenote.sql.rows import Guard

log = logging.getLogger("cenote.engine")


class Shift:
    """One tenure of the primary."""

    def __init__(self, core: Core, lease: Lease, board: Board, lag: LagWindow) -> None:
        self._core = core
        self._lease = lease
        self._board = board
        self._lag = lag
        self._config = core.config.flush
        self._generation = core.link.generation
        self._epochs = core.epochs
        self._lineage = Lineage(core, board)
        self.hand: Hand | None = None
        """What it has in hand, once it has begun."""

    async def work(self) -> None:
        """Flush until the shift is over. Raises ShiftOver, or what made it impossible."""
        core, tenure = self._core, await self._begin()
        hand = self.hand = Hand(core, self._board, self._lag, tenure)
        await hand.work(
            self._keep_lease(hand),
            self._lineage.keep(),
            Evictor(core, tenure.durable, self._lineage).run(),
            Collector(core, tenure.durable, tenure.guard, hand.overlap, OVERLAP).run(),
            CounterFlush(core).run(),
            keep_doing(core.chores),
        )

    async def _begin(self) -> Tenure:
        """F-gen: every server start and every epoch has a durable of its own, so that old acks have no address."""
        core, seen = self._core, self._core.met_sequence
        info = await core.stream.info()
        start = incarnation(core.link, info)
        if not start or core.link.generation != self._generation:
            raise ShiftOver("the connection is another one")
        guard = Guard(self._epochs.newest, start)
        old = info.metadata.get(DURABLE_KEY)
        durable = await self._lineage.durable(durable_prefix(guard.epoch, start), old)
        await self._renew()  # a beginning takes long on a busy machine: others must not begin as well, in vain
        high_water = await take_over(core, guard.epoch, start, seen, info.last_seq)
        await self._renew()
        batch, flushers = self._config.batch_count_max, self._config.active_max
        consumer = await ensure_consumer(
            core.link, core.stream.name, durable, batch=batch, flushers=flushers, first_pass=info.last_seq
        )
        if old != durable:
            await core.stream.update_metadata({DURABLE_KEY: durable})
            if old is not None:
                await delete_consumer(core.link, core.stream.name, old)
        core.durable_name = core.current_durable = durable
        await mend_once(core, guard, info, high_water, lambda: self._lease.renew(self._board))
        if core.link.generation != self._generation:
            raise ShiftOver("the connection is another one")
        seen_before = high_water.sequence if high_water else 0
        return Tenure(self._generation, self._epochs, guard, durable, consumer.first_pass, high_water, seen_before)

    async def _keep_lease(self, hand: Hand) -> None:
        """Renew the lease, write the board, and notice whatever ends the shift."""
        while True:
            hand.check()
            await self._keep_durable(hand.tenure)
            await self._fill_board(hand)
            await self._renew()
            await asyncio.sleep(limits.LEASE_RENEW_MS / 1000)

    async def _renew(self) -> None:
        async with asyncio.timeout(limits.LEASE_EXPIRE_MS / 1000):
            if not await self._lease.renew(self._board):
                raise ShiftOver("another process has taken the lease")

    async def _keep_durable(self, tenure: Tenure) -> None:
        """Another process may have written the stream's metadata over what we wrote there."""
        core, name = self._core, tenure.durable
        if core.durable_name != name:
            core.durable_name = (await core.stream.update_metadata({DURABLE_KEY: name})).metadata[DURABLE_KEY]
        if not core.announced:
            await announce_mended(core, *tenure.guard, tenure.generation)

    async def _fill_board(self, hand: Hand) -> None:
        board = self._board
        board.renewed_ms = self._core.link.server_now_ms()
        clean = hand.empty and self._core.fullness.backlog == 0
        if clean and self._config.active_max > 1:
            clean = await self._settled(hand.tenure.durable)
        if clean:
            board.clean_ms = board.renewed_ms
        hand.fill_board()

    async def _settled(self, durable: str) -> bool:
        """Whether nobody else has anything in hand either, asked after the moment that will be called clean (I8)."""
        consumer = await self._core.consumer(durable)
        return consumer is not None and consumer.pending + consumer.ack_pending == 0
