"""What a tenure of a flusher has in hand: KV stream → durable consumer → one fenced statement → commit → ack (I1, I3,
I7, I13; flow rules 3, 12, 18).

An entry is acknowledged only after PostgreSQL committed it, or holds something newer, so a flusher may die at any line:
what it had in hand is delivered again and the fence makes that harmless. It makes no difference here whether the tenure
is the primary's (`engine/shift.py`) or one beside it (`engine/seconds.py`).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import astuple
from typing import Any, NamedTuple

from cenote import limits, points
from cenote.engine import entries
from cenote.engine.batch import Batch, Delivery, Poison, build
from cenote.engine.core import Core
from cenote.engine.epoch import Epochs
from cenote.engine.fence import Look, looker, pass_fence
from cenote.engine.lag import LagWindow
from cenote.engine.lease import Board, Lease
from cenote.engine.registrar import Registrar
from cenote.engine.rewind import Envelope, Rewound, begin, examined, stale
from cenote.errors import TransactionError, UnavailableError
from cenote.kv.consumer import Pull, ack_many, nak, progress_many
from cenote.kv.message import Message
from cenote.sql.errors import DataRefused
from cenote.sql.rows import Flushed, GcFloor, Guard, Heartbeat, HighWater, Row

log = logging.getLogger("cenote.engine")

OVERLAP = 2  # one statement runs in PostgreSQL while the next batch is being built here
_RETRY_S_MAX = 1.0
_SLOW_S = 2.0
_LANDING_S = 0.5  # what a flight may take to land when its tenure ends
_TROUBLE_S_MAX = 2.0  # a pull in trouble for so long has lost its durable


class ShiftOver(Exception):
    """A tenure has ended: lease, connection, epoch, server start or durable is another one now."""


class Flight(NamedTuple):
    """A batch on its way into PostgreSQL, and since when."""

    taken: list[Delivery]
    since: float


class Tenure(NamedTuple):
    """What everything in hand is bound to: when any of it changes, all is dropped, for its sequences prove nothing any
    more (F-conn, F-inc). `seen_before` is the sequence up to which SQL has seen what the durable delivers."""

    generation: int
    epochs: Epochs
    guard: Guard
    durable: str
    first_pass: int
    high_water: HighWater | None
    seen_before: int


class Hand:
    """Takes entries in hand and brings them to SQL, until the tenure is over."""

    def __init__(self, core: Core, board: Board, lag: LagWindow, tenure: Tenure) -> None:
        self._core = core
        self.before_ack: Callable[[], Awaitable[None]] | None = None
        """Asked between the commit and its acks, which are not sent when it raises."""
        self._board = board
        self._lag = lag
        self._config = core.config.flush
        self.tenure = tenure
        self._generation = tenure.generation
        self._guard = tenure.guard
        self._prefix_length = len(core.stream.prefix)
        self._inbox: list[Delivery] = []
        self._inbox_since = 0.0
        self._threshold_count = self._config.threshold_count
        self._envelope = Envelope(tenure.high_water)
        self._ripe = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.overlap = asyncio.Semaphore(OVERLAP)
        self._flights: dict[asyncio.Task[None], Flight] = {}
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._names = Registrar(core.table)
        batch = self._config.batch_count_max
        self._pull = Pull(
            core.link,
            core.stream.name,
            tenure.durable,
            self._deliver,
            batch=batch,
            credit=batch * (OVERLAP + 1),
        )
        self._trouble_since = time.monotonic()

    @property
    def empty(self) -> bool:
        """Whether nothing is in hand."""
        return not self._inbox and not self._flights

    async def work(self, *beside: Coroutine[Any, Any, None]) -> None:
        """Flush, and do what is to be done beside it, until any of it fails or ends. Raises what ended it."""
        self._core.durability.hurry = self._ripe.set
        self._core.stir()  # the board tells of the backlog
        self._pull.start()
        self._trouble_since = time.monotonic()
        jobs = [self._flush_for_ever(), self._keep_hold(), self._names.keep_trying(), *beside]
        tasks = [asyncio.create_task(job) for job in jobs]
        try:
            done, _ = await asyncio.wait([*tasks, self._failed], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        finally:
            self._core.durability.hurry = None
            await self._end(tasks)

    def check(self) -> None:
        """Raises ShiftOver when that which everything in hand is bound to is another one by now."""
        core, tenure, pull = self._core, self.tenure, self._pull
        if core.link.generation != tenure.generation or not core.link.connected:
            raise ShiftOver("the connection is another one")
        if not core.stream.ours:
            raise ShiftOver("the stream is another store's")
        if core.epochs != tenure.epochs:
            raise ShiftOver("the epoch is another one")
        if core.incarnation not in ("", tenure.guard.incarnation):
            raise ShiftOver("the stream has another leader")
        if pull.trouble is None:
            self._trouble_since = time.monotonic()
        elif time.monotonic() - self._trouble_since > _TROUBLE_S_MAX:
            raise ShiftOver(f"nothing is delivered: {pull.trouble}")

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
        await self._pull.stop()
        if not self._failed.done():
            self._failed.cancel()
        elif not self._failed.cancelled():
            self._failed.exception()  # retrieved: it was raised, or another reason came first
        if self._core.link.generation == self._generation and self._core.link.connected:
            for delivery in in_hand:
                nak(self._core.link, delivery.reply, 0, generation=self._generation)

    def fill_board(self) -> None:
        """Tell how flushing goes."""
        board = self._board
        board.lag_ms_p50, board.lag_ms_p95, board.lag_ms_p99 = self._lag.percentiles(0.50, 0.95, 0.99)
        board.windows = {name: list(astuple(window)) for name, window in self._lag.windows().items()}
        board.violations = self._lag.violations
        board.count(self._core.counts)

    # --- arrivals -------------------------------------------------------------------------------------------

    def _deliver(
        self, sequence: int, time_us: int, subject: bytes, header: bytes, payload: bytes, reply: bytes
    ) -> None:
        inbox = self._inbox
        inbox.append(Delivery(Message(subject.decode("ascii"), sequence, time_us, header, payload), reply))
        waiting = len(inbox)
        if waiting == 1:
            self._inbox_since = time.monotonic()
        if waiting >= self._threshold_count or self._core.durability:
            self._ripe.set()
        elif waiting == 1:
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
            await self.overlap.acquire()
            taken = self._inbox[: self._config.batch_count_max]
            del self._inbox[: len(taken)]
            self._inbox_since = time.monotonic()
            if len(self._inbox) < self._config.threshold_count:
                self._ripe.clear()
                if self._inbox:
                    self._ripen_later()
            if not taken:
                self.overlap.release()
                continue
            odd = self._envelope.odd(taken)
            flight = asyncio.create_task(self._flush_odd(taken, odd) if odd else self._flush(taken))
            self._flights[flight] = Flight(taken, time.monotonic())
            flight.add_done_callback(self._landed)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        del self._flights[flight]
        self.overlap.release()
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
        self._pull.release(len(done), sum(len(delivery.message.payload) for delivery in done))

    async def _flush_some(self, taken: list[Delivery]) -> list[Delivery]:
        """Flush as many as fit into one statement; what is left over."""
        core = self._core
        if points.armed:
            await points.hit("flush.taken")
        batch = build(taken, self.tenure.epochs, self._prefix_length, self.tenure.first_pass)
        started = time.monotonic()
        if batch.rows or batch.poison:
            high_water = max((one.message.sequence, one.message.time_us) for one in taken)
            flush, rows = self._until_committed(batch, high_water), len(batch.rows) + len(batch.poison)
            await (flush if core.spans is None else core.spans.flushing(flush, rows))
        if points.armed:
            await points.hit("flush.committed")
        await self._names.register(batch.agents, batch.rows)
        if core.link.generation != self._generation:
            raise ShiftOver("the connection was replaced during a flush")
        if self.before_ack is not None:
            await self.before_ack()
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
                core.counts.flush_errors[type(error).__name__] += 1
                core.db.retries += isinstance(error, TransactionError)
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
        heartbeat = Heartbeat(core.writer_id, self.tenure.epochs.store_id, *high_water)
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
            return overtaken + _unless_dropped(await pass_fence(core.table, rows, write, look))
        except DataRefused as refused:
            if len(rows) > 1:
                middle = len(rows) // 2
                overtaken += await self._commit(batch, rows[:middle], [], high_water)
                return overtaken + await self._commit(batch, rows[middle:], [], high_water)
            core.counts.flush_errors[type(refused).__name__] += 1
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

        overtaken = _unless_dropped(await pass_fence(core.table, [item.row], write, look))
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
            seen = self.tenure.seen_before
            if self._lag.record([now_ms - row.kv_time_us / 1000 for row in batch.rows if row.version > seen]):
                core.late.note(row for row in batch.rows if row.version > seen)
            board.committed_ms = now_ms
            core.counts.commits += 1
            core.counts.flush_ms += took_ms
            core.counts.flush_tally.add(took_ms)
            core.counts.batch_tally.add(len(batch.rows))
            core.counts.flushed += len(batch.rows)
        core.counts.delivered += delivered
        core.counts.unknown_formats += len(batch.later)

    async def _keep_hold(self) -> None:
        """Tell the server that what is in hand is being worked on, before it delivers it to somebody else."""
        while True:
            await asyncio.sleep(limits.ACK_PROGRESS_MS / 1000)
            long_ago = time.monotonic() - limits.ACK_PROGRESS_MS / 1000
            kept = [one for flight in self._flights.values() if flight.since < long_ago for one in flight.taken]
            if self._inbox and self._inbox_since < long_ago:
                kept += self._inbox
            progress_many(self._core.link, [delivery.reply for delivery in kept], generation=self._generation)


def _unless_dropped(overtaken: list[Row] | None) -> list[Row]:
    """A guard that did not hold wrote nothing, and the batch is dropped."""
    if overtaken is None:
        raise ShiftOver("the epoch or the server start is another one")
    return overtaken


async def held(core: Core, lease: Lease, work: Coroutine[Any, Any, None]) -> None:
    """Work one tenure under a lease, which is given back afterwards, and begin the epoch that it asks for: several who
    find the same rewind begin one (flow rule 4)."""
    leaving = False
    try:
        await work
    except asyncio.CancelledError:
        leaving = True
        raise
    except ShiftOver as over:
        log.info("a flusher's tenure ends: %s", over)
    except Rewound as rewound:
        log.warning("%s: an epoch begins", rewound)
        await begin(core, rewound)
    finally:
        if core.link.connected and core.stream.ours:
            await lease.release(leaving=leaving)
