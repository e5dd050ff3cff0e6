"""The write-behind: KV stream → durable consumer → one fenced statement → commit → ack (I1, I3, I7, I8, I13).

The durable consumer is the dirty set. An entry is acknowledged only after PostgreSQL committed it, or holds something
newer, so a flusher may die at any line: what it had in hand is delivered again and the fence makes that harmless.

One *shift* is one tenure: one lease, one connection, one epoch, one server start. Whatever of these changes ends the
shift, and everything in hand is dropped, for its sequences prove nothing any more (F-conn, F-inc).
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, NamedTuple

from cenote import limits, points
from cenote.engine import entries
from cenote.engine.batch import Batch, Delivery, Poison, build
from cenote.engine.collector import Collector
from cenote.engine.core import Core
from cenote.engine.epoch import DURABLE_KEY
from cenote.engine.evictor import Evictor
from cenote.engine.fence import Look, looker, pass_fence
from cenote.engine.incarnation import durable_prefix, incarnation
from cenote.engine.lag import LagWindow
from cenote.engine.lease import Board, Lease
from cenote.engine.lineage import Lineage
from cenote.engine.mender import mend_once, take_over
from cenote.engine.registrar import Registrar
from cenote.engine.rewind import Envelope, examined, stale
from cenote.engine.waiting import announce_mended
from cenote.errors import TransactionError, UnavailableError
from cenote.kv.consumer import Pull, ack_many, delete_consumer, ensure_consumer, nak, progress_many
from cenote.kv.message import Message
from cenote.sql.errors import DataRefused
from cenote.sql.rows import Flushed, GcFloor, Guard, Heartbeat, Row

log = logging.getLogger("cenote.engine")

_OVERLAP = 2  # one statement runs in PostgreSQL while the next batch is being built here
_RETRY_S_MAX = 1.0
_SLOW_S = 2.0
_LANDING_S = 0.5  # what a flight may take to land when its shift ends
_TROUBLE_S_MAX = 2.0  # a pull in trouble for so long has lost its durable


class ShiftOver(Exception):
    """This tenure has ended: lease, connection, epoch or server start is another one now."""


class Flight(NamedTuple):
    """A batch on its way into PostgreSQL, and since when."""

    taken: list[Delivery]
    since: float


class Shift:
    """One tenure of the active flusher."""

    def __init__(self, core: Core, lease: Lease, board: Board, lag: LagWindow) -> None:
        self._core = core
        self._lease = lease
        self._board = board
        self._lag = lag
        self._config = core.config.flush
        self._generation = core.link.generation
        self._epochs = core.epochs
        self._guard = Guard(core.epochs.newest, "")
        self.durable = ""
        self._prefix_length = len(core.stream.prefix)
        self._inbox: list[Delivery] = []
        self._inbox_since = 0.0
        self._seen_before = 0
        self._first_pass = 0
        self._lineage = Lineage(core, board)
        self._envelope = Envelope(None)
        self._ripe = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._overlap = asyncio.Semaphore(_OVERLAP)
        self._flights: dict[asyncio.Task[None], Flight] = {}
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._names = Registrar(core.table)
        self._pull: Pull | None = None
        self._trouble_since = time.monotonic()

    async def work(self) -> None:
        """Flush until the shift is over. Raises ShiftOver, or what made it impossible."""
        core = self._core
        await self._begin()
        core.durability.hurry = self._ripe.set
        batch = self._config.batch_count_max
        self._pull = Pull(
            core.link,
            core.stream.name,
            self.durable,
            self._deliver,
            batch=batch,
            credit=batch * (_OVERLAP + 1),
        )
        self._pull.start()
        jobs: list[Coroutine[Any, Any, None]] = [
            self._flush_for_ever(), self._keep_lease(), self._keep_hold(), self._names.keep_trying(),
            self._lineage.keep(), Evictor(core, self.durable, self._lineage).run(),
            Collector(core, self.durable, self._guard, self._overlap, _OVERLAP).run(),
        ]  # fmt: skip
        tasks = [asyncio.create_task(job) for job in jobs]
        try:
            done, _ = await asyncio.wait([*tasks, self._failed], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        finally:
            await self._end(tasks)

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        """Stop asking for entries; hand back what is in hand, so that the next flusher need not wait for it. A batch
        that PostgreSQL may have committed by now gets a moment for its acks, or it would be delivered for nothing."""
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._flights and not self._failed.done():
            await asyncio.wait(list(self._flights), timeout=_LANDING_S)
        in_hand = [*self._inbox, *(one for flight in self._flights.values() for one in flight.taken)]
        flights = list(self._flights)
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        if self._pull is not None:
            await self._pull.stop()
        if not self._failed.done():
            self._failed.cancel()
        elif not self._failed.cancelled():
            self._failed.exception()  # retrieved: it was raised, or another reason came first
        if self._core.link.generation == self._generation and self._core.link.connected:
            for delivery in in_hand:
                nak(self._core.link, delivery.reply, 0, generation=self._generation)

    async def _begin(self) -> None:
        """F-gen: every server start and every epoch has a durable of its own, so that old acks have no address."""
        core, seen = self._core, self._core.seen_sequence
        info = await core.stream.info()
        start = incarnation(core.link, info)
        if not start or core.link.generation != self._generation:
            raise ShiftOver("the connection is another one")
        self._guard = self._guard._replace(incarnation=start)
        self.durable = await self._lineage.durable(
            durable_prefix(self._guard.epoch, start), info.metadata.get(DURABLE_KEY)
        )
        high_water = await take_over(core, self._guard.epoch, start, seen, info.last_seq)
        self._envelope = Envelope(high_water)
        batch, flushers = self._config.batch_count_max, self._config.active_max
        consumer = await ensure_consumer(
            core.link, core.stream.name, self.durable, batch=batch, flushers=flushers, first_pass=info.last_seq
        )
        self._first_pass = consumer.first_pass
        old = info.metadata.get(DURABLE_KEY)
        if old != self.durable:
            await core.stream.update_metadata({DURABLE_KEY: self.durable})
            if old is not None:
                await delete_consumer(core.link, core.stream.name, old)
        core.durable_name = core.current_durable = self.durable
        self._seen_before = high_water.sequence if high_water else 0
        await mend_once(core, self._guard, info, high_water, lambda: self._lease.renew(self._board))
        if core.link.generation != self._generation:
            raise ShiftOver("the connection is another one")

    # --- arrivals -------------------------------------------------------------------------------------------

    def _deliver(
        self, sequence: int, time_us: int, subject: bytes, header: bytes, payload: bytes, reply: bytes
    ) -> None:
        if not self._inbox:
            self._inbox_since = time.monotonic()
        message = Message(subject.decode("ascii"), sequence, time_us, header, payload)
        self._inbox.append(Delivery(message, reply))
        if len(self._inbox) >= self._config.threshold_count or self._core.durability:
            self._ripe.set()
        elif len(self._inbox) == 1:
            self._ripen_later()

    def _ripen_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._config.interval_ms / 1000, self._ripe.set)

    async def _flush_for_ever(self) -> None:
        """Take what is ripe: 50 entries, or 20 ms old, or awaited by somebody; while SQL is busy, up to 500."""
        while True:
            await self._ripe.wait()
            await self._overlap.acquire()
            taken = self._inbox[: self._config.batch_count_max]
            del self._inbox[: len(taken)]
            self._inbox_since = time.monotonic()
            if len(self._inbox) < self._config.threshold_count:
                self._ripe.clear()
                if self._inbox:
                    self._ripen_later()
            if not taken:
                self._overlap.release()
                continue
            odd = self._envelope.odd(taken)
            flight = asyncio.create_task(self._flush_odd(taken, odd) if odd else self._flush(taken))
            self._flights[flight] = Flight(taken, time.monotonic())
            flight.add_done_callback(self._landed)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        del self._flights[flight]
        self._overlap.release()
        error = None if flight.cancelled() else flight.exception()
        if error is not None and not self._failed.done():
            self._failed.set_exception(error)

    # --- one flush ------------------------------------------------------------------------------------------

    async def _flush(self, taken: list[Delivery]) -> None:
        while taken:
            taken = await self._flush_some(taken)

    async def _flush_odd(self, taken: list[Delivery], odd: list[tuple[Delivery, bool]]) -> None:
        """Rule 3: a delivery whose sequence and time disagree is neither applied nor acknowledged before the leader has
        said what holds its sequence now."""
        dropped = await stale(self._core, odd, generation=self._generation)
        self._release(dropped)
        await self._flush([delivery for delivery in taken if delivery not in dropped])

    def _release(self, done: list[Delivery]) -> None:
        assert self._pull is not None
        self._pull.release(len(done), sum(len(delivery.message.payload) for delivery in done))

    async def _flush_some(self, taken: list[Delivery]) -> list[Delivery]:
        """Flush as many as fit into one statement; what is left over."""
        core = self._core
        if points.armed:
            await points.hit("flush.taken")
        batch = build(taken, self._epochs, self._prefix_length, self._first_pass)
        started = time.monotonic()
        if batch.rows or batch.poison:
            await self._until_committed(batch, max((one.message.sequence, one.message.time_us) for one in taken))
        if points.armed:
            await points.hit("flush.committed")
        await self._names.register(batch.agents)
        if core.link.generation != self._generation:
            raise ShiftOver("the connection was replaced during a flush")
        ack_many(core.link, [delivery.reply for delivery in batch.settled], generation=self._generation)
        for delivery in batch.later:
            nak(core.link, delivery.reply, limits.UNKNOWN_FORMAT_DELAY_S, generation=self._generation)
        if points.armed:
            await points.hit("flush.acked")
        done = [*batch.settled, *batch.later]
        self._release(done)
        self._tell(batch, len(done), (time.monotonic() - started) * 1000)
        return batch.rest

    async def _until_committed(self, batch: Batch, high_water: tuple[int, int]) -> None:
        core = self._core
        rows, poison = batch.rows, list(batch.poison)
        pause_s, size = 0.02, max(1, len(rows))
        while True:
            began = time.monotonic()
            try:
                overtaken: list[Row] = []
                for start in range(0, max(1, len(rows)), size):
                    overtaken += await self._commit(batch, rows[start : start + size], poison, high_water)
                if overtaken:  # nobody may be told that they are in SQL
                    batch.rows[:] = [row for row in rows if row not in overtaken]
                self._board.sql_down_since_ms = None
                return
            except (UnavailableError, TransactionError) as error:
                if self._board.sql_down_since_ms is None:
                    self._board.sql_down_since_ms = core.link.server_now_ms()
                    log.warning("PostgreSQL does not take the flush, trying again: %s", error)
                if time.monotonic() - began > _SLOW_S:
                    size = max(1, size // 2)  # it may be the statement that takes too long, not the server
            if core.link.generation != self._generation:
                raise ShiftOver("the connection was replaced while PostgreSQL was away")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _RETRY_S_MAX)

    async def _commit(
        self, batch: Batch, rows: list[Row], poison: list[Poison], high_water: tuple[int, int]
    ) -> list[Row]:
        """Commit all rows; those that PostgreSQL refuses are found by halving, and quarantined (I13). Those that were
        overtaken and collected since are returned."""
        core = self._core
        heartbeat = Heartbeat(core.writer_id, self._epochs.store_id, *high_water)
        look = looker(core, batch.agents)
        overtaken: list[Row] = []
        for item in poison:
            overtaken += await self._quarantine(item, heartbeat, look)
        poison.clear()
        if not rows:
            return overtaken

        async def write(some: list[Row], looked: GcFloor | None) -> Flushed | None:
            outcome = await core.table.flush(some, self._guard, heartbeat, looked=looked)
            return await examined(core, some, outcome, generation=self._generation)

        try:
            return overtaken + _held(await pass_fence(core.table, rows, write, look))
        except DataRefused as refused:
            if len(rows) > 1:
                middle = len(rows) // 2
                overtaken += await self._commit(batch, rows[:middle], [], high_water)
                return overtaken + await self._commit(batch, rows[middle:], [], high_water)
            log.error("quarantined %s of agent %s: %s", rows[0].key, rows[0].agent_id, refused)
            refusal = Poison(entries.exact(rows[0]), str(refused), "")
            return overtaken + await self._commit(batch, [], [refusal], high_water)

    async def _quarantine(self, item: Poison, heartbeat: Heartbeat, look: Look) -> list[Row]:
        core = self._core

        async def write(_: list[Row], looked: GcFloor | None) -> Flushed | None:
            outcome = await core.table.flush_one_quarantined(
                item.row, self._guard, heartbeat, reason=item.reason, envelope=item.envelope, looked=looked
            )
            return await examined(core, [item.row], outcome, generation=self._generation)

        overtaken = _held(await pass_fence(core.table, [item.row], write, look))
        if not overtaken:
            core.counts.quarantined += 1
            core.durability.committed([item.row])
        return overtaken

    def _tell(self, batch: Batch, delivered: int, took_ms: float) -> None:
        core, board = self._core, self._board
        core.durability.committed(batch.rows)
        now_ms = core.link.server_now_ms()
        if batch.rows:
            # A new durable delivers everything that is live once more; what SQL has had already has no lag.
            fresh = [row for row in batch.rows if row.version > self._seen_before]
            self._lag.record([now_ms - row.kv_time_us / 1000 for row in fresh])
            board.committed_ms = now_ms
            core.counts.commits += 1
            core.counts.flush_ms += took_ms
            core.counts.flushed += len(batch.rows)
        core.counts.delivered += delivered
        core.counts.unknown_formats += len(batch.later)

    # --- beside the flushes ---------------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        """Renew the lease, write the board, and notice whatever ends the shift."""
        core = self._core
        while True:
            if core.link.generation != self._generation or not core.link.connected:
                raise ShiftOver("the connection is another one")
            if not core.stream.ours:
                raise ShiftOver("the stream is another store's")
            if core.epochs != self._epochs:
                raise ShiftOver("the epoch is another one")
            if core.incarnation not in ("", self._guard.incarnation):
                raise ShiftOver("the stream has another leader")
            await self._keep_durable()
            self._fill_board()
            async with asyncio.timeout(limits.LEASE_EXPIRE_MS / 1000):
                if not await self._lease.renew(self._board):
                    raise ShiftOver("another process has taken the lease")
            await asyncio.sleep(limits.LEASE_RENEW_MS / 1000)

    async def _keep_durable(self) -> None:
        """Another process may have written the stream's metadata over what we wrote there, or deleted the durable."""
        core, pull = self._core, self._pull
        assert pull is not None
        if pull.trouble is None:
            self._trouble_since = time.monotonic()
        elif time.monotonic() - self._trouble_since > _TROUBLE_S_MAX:
            raise ShiftOver(f"nothing is delivered: {pull.trouble}")
        if core.durable_name != self.durable:
            core.durable_name = (await core.stream.update_metadata({DURABLE_KEY: self.durable})).metadata[DURABLE_KEY]
        if not core.announced:
            await announce_mended(core, *self._guard, self._generation)

    def _fill_board(self) -> None:
        board = self._board
        board.renewed_ms = self._core.link.server_now_ms()
        if not self._inbox and not self._flights and self._core.fullness.backlog == 0:
            board.clean_ms = board.renewed_ms
        board.lag_ms_p50, board.lag_ms_p95, board.lag_ms_p99 = self._lag.percentiles(0.50, 0.95, 0.99)
        board.violations = self._lag.violations
        board.count(self._core.counts)

    async def _keep_hold(self) -> None:
        """Tell the server that what is in hand is being worked on, before it delivers it to somebody else."""
        while True:
            await asyncio.sleep(limits.ACK_PROGRESS_MS / 1000)
            long_ago = time.monotonic() - limits.ACK_PROGRESS_MS / 1000
            kept = [one for flight in self._flights.values() if flight.since < long_ago for one in flight.taken]
            if self._inbox and self._inbox_since < long_ago:
                kept += self._inbox
            progress_many(self._core.link, [delivery.reply for delivery in kept], generation=self._generation)


def _held(overtaken: list[Row] | None) -> list[Row]:
    """A guard that did not hold wrote nothing, and the batch is dropped."""
    if overtaken is None:
        raise ShiftOver("the epoch or the server start is another one")
    return overtaken
