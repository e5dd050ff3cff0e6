"""Flushers beside the primary, where `flush.active_max` allows them (I1, I8, I11; flow rules 3, 4, 5, 18).

A process that does not hold the first lease may hold one of the slots 2 … `flush.active_max`. It follows: it names no
durable and creates none, compares nothing, evicts nothing, collects nothing. Two that named durables would fight over
the name after a rewind, and each rename delivers everything once more; so only the primary does, and who follows waits
until the name in the stream's metadata is one that it may use.

It may use one that is of this epoch, of this start of the KV server, and of the very PostgreSQL that answers *here*,
once the comparison of KV with SQL has been announced: before that an entry that came back might be flushed as if it
were new. The guard of a flush, the envelope and the fence are the same as the primary's, so what a frozen one still
holds is dropped or refused as the primary's would be.
"""

import asyncio
import logging
import random
from dataclasses import replace

from cenote import limits
from cenote.engine.core import Core
from cenote.engine.hand import Hand, ShiftOver, Tenure, held
from cenote.engine.lag import LagWindow
from cenote.engine.lease import Board, Lease
from cenote.engine.lineage import Lineage
from cenote.engine.slots import slots
from cenote.errors import CenoteError
from cenote.sql.rows import Guard

log = logging.getLogger("cenote.engine")

_dice = random.Random()  # its own: a program that seeds the global one must get what it expects


def may_follow(core: Core) -> bool:
    """Whether, by the last probe, a durable of this epoch and server start is named, and KV was compared since."""
    return core.link.connected and core.stream.ours and core.current_durable is not None and core.announced


class Second:
    """One tenure beside the primary."""

    def __init__(self, core: Core, lease: Lease, board: Board, lag: LagWindow) -> None:
        self._core = core
        self._lease = lease
        self._board = board
        self._lag = lag
        self._lineage = Lineage(core, board)

    async def work(self) -> None:
        """Flush until the tenure is over. Raises ShiftOver, or what made it impossible."""
        hand = Hand(self._core, self._board, self._lag, await self._begin())
        # Rule 5: the primary's evictor asks its own PostgreSQL before a PURGE. What was committed to another one, by a
        # process on the far side of a failover, must not be acknowledged, or the floor would promise what that lacks.
        hand.before_ack = self._lineage.demand
        await hand.work(self._keep_slot(hand), self._lineage.keep(pruning=False))

    async def _begin(self) -> Tenure:
        """PostgreSQL is asked after the name of the durable was read: what it was named for must be found here."""
        core, generation = self._core, self._core.link.generation
        await core.probe_once()
        epochs, start, durable = core.epochs, core.incarnation, core.current_durable
        if not may_follow(core) or durable is None or not start or core.link.generation != generation:
            raise ShiftOver("there is nothing to follow yet")
        guard = Guard(epochs.newest, start)
        await self._lineage.follow(durable)
        consumer, high_water = await core.consumer(durable), await core.table.high_water(guard.epoch)
        if consumer is None or core.link.generation != generation:
            raise ShiftOver("the connection or the durable is another one")
        # What came after the durable began is new to SQL whoever flushed meanwhile, and has a lag that counts (I8).
        seen_before = min(high_water.sequence if high_water else 0, consumer.first_pass)
        return Tenure(generation, epochs, guard, durable, consumer.first_pass, high_water, seen_before)

    async def _keep_slot(self, hand: Hand) -> None:
        """Renew the slot, write its board, and notice whatever ends the tenure."""
        core, board = self._core, self._board
        while True:
            hand.check()
            if core.durable_name != hand.tenure.durable:
                raise ShiftOver("the primary has named another durable")
            board.renewed_ms = core.link.server_now_ms()  # never `clean_ms`: one of several cannot know that
            hand.fill_board()
            async with asyncio.timeout(limits.LEASE_EXPIRE_MS / 1000):
                if not await self._lease.renew(board):
                    raise ShiftOver("another process has taken the slot")
            await asyncio.sleep(limits.LEASE_RENEW_MS / 1000)


class Seconds:
    """Competes for the slots, works one tenure after another; only while this process is not the primary."""

    def __init__(self, core: Core, board: Board, lag: LagWindow) -> None:
        self._core = core
        self._board = replace(board)  # beside the primary's, which this process may come to write
        self._lag = lag
        self._slots = slots(core.link, core.names, core.writer_id, core.config.flush.active_max)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to compete."""
        for slot in self._slots:
            slot.listen()
        self._task = asyncio.create_task(self._run(), name="cenote-second")

    async def stop(self) -> None:
        """Give back the slot, if there is one, and what is in hand."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        for slot in self._slots:
            slot.close()

    async def _run(self) -> None:
        told = ""
        while True:
            try:
                slot = await self._free_slot()
                if slot is not None:
                    await held(self._core, slot, Second(self._core, slot, self._board, self._lag).work())
                    told = ""
            except (CenoteError, TimeoutError) as error:
                if str(error) != told:
                    log.info("flushing beside the primary pauses: %s", error)
                    told = str(error)
            except Exception:
                log.exception("flushing beside the primary met an error of its own and begins anew")
            await asyncio.sleep(limits.LEASE_RENEW_MS / 1000 * (1 + _dice.random()))

    async def _free_slot(self) -> Lease | None:
        """A slot that is ours now. Costs no request while there is nothing to follow, or all slots are heard."""
        if not may_follow(self._core):
            return None
        for slot in self._slots:
            if slot.quiet and await slot.acquire(self._board):
                return slot
        return None
