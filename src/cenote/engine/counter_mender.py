"""Counters after time went backwards: what SQL holds beyond the stream is added back, once (I1, I3; flow rule 4).

Totals follow one line of history. Where the stream ends before the total that SQL has, the difference of the two is the
sum of exactly those increments that SQL holds and the stream has lost; it is added as an increment, so what comes later
is not touched. Which of the two is behind:

- by sequence, within an epoch: SQL's total was read at a sequence beyond the live one of that counter;
- always the stream, where it bears no announcement of its own, or one of an earlier epoch: it was created anew, or put
  back to a copy from before an epoch;
- always SQL, where the stream announces a later epoch than SQL knows: the database was put back. Nothing is added, but
  for counters that the stream does not have at all, and every total is written to SQL again.

Why none is lost and none counted twice:

- nobody adds before it is done: after a start of the server every connection is a new one, and whoever counts waits for
  the announcement (`engine/counter_life.py`); a stream made anew has other subjects. So the difference is that at the
  start of the server, and the message that gives it back stays the counter's last one until the announcement. It bears
  an id made of SQL's epoch and version, which whoever comes after a crash finds there and leaves alone;
- one mender at a time holds the row of SQL, so no flush changes it; one that lost the row without knowing repeats ids
  that the server has seen, or gives up before it has forgotten them;
- the announcement comes before the commit. Without the commit the next mender finds an epoch that SQL does not know,
  takes SQL for the older one, and adds nothing again.

What is not exact: (1) a copy that is put back while the server runs, so that no connection breaks, is found by its last
sequence within a second, and increments of that second may be taken for ones that SQL has; so may those of a cluster
that forgets acknowledged writes without closing a connection. (2) Increments that only an old copy holds, because the
stream lost them before any flush, are not told from the later ones that SQL has, and are gone. (3) A commit of a
flusher that was frozen since before the server's start, and whose mender died between announcement and commit, brings
SQL a total that is replaced at the next flush.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

from cenote import limits
from cenote.engine.core import Core, reading
from cenote.engine.counter_life import Life, announcement, look
from cenote.errors import UnavailableError
from cenote.kv.counters import CounterStream, operation_of, total_of
from cenote.kv.message import Message
from cenote.model import key as keys
from cenote.sql.counters import CounterHead, CounterTable, GivenBack
from cenote.sql.transaction import Isolation, Transaction, transact

log = logging.getLogger("cenote.engine")

_WINDOW = 200  # increments in flight at a time


class Lost(NamedTuple):
    """A total of SQL that the stream does not have (any more): where, and the message that gives it back."""

    name: str
    subject: str
    value: int
    version: int
    operation: str


async def mend(core: Core, stream: CounterStream, table: CounterTable) -> None:
    """Compare the stream with SQL, unless that was done for this start of the server, and announce it.

    Raises:
        UnavailableError: NATS or PostgreSQL cannot be reached; nothing is counted twice by trying again.
    """

    async def run(tx: Transaction) -> None:
        before = await table.hold(tx)
        life = await look(core, stream)
        if life is None:
            raise UnavailableError("the counter stream is gone again", tier="DISTRIBUTED_KV")
        if life.settled and (life.epoch, life.start) == before[:2] and life.last_seq >= before.flushed:
            return  # somebody was quicker
        await _Mending(core, stream, table, life, before).settle(tx)

    with reading():  # a commit that may have happened is looked at when it is tried again
        await transact(core.db, run, isolation=Isolation.READ_COMMITTED)


class _Mending:
    """One comparison, under the lock of the row."""

    def __init__(self, core: Core, stream: CounterStream, table: CounterTable, life: Life, before: CounterHead) -> None:
        self._core = core
        self._stream = stream
        self._table = table
        self._life = life
        self._before = before
        self._began = time.monotonic()

    async def settle(self, tx: Transaction) -> None:
        life, before = self._life, self._before
        with reading():
            lost = await self._lost(await self._table.totals(tx, before.epoch))
            given: list[GivenBack] = []
            for at in range(0, len(lost), _WINDOW):
                done = await asyncio.gather(*(self._give_back(one) for one in lost[at : at + _WINDOW]))
                given += [one for one in done if one is not None]
            epoch = self._next_epoch(bool(given))
            if self._core.link.generation != life.generation:
                raise UnavailableError("reconnected while counters were compared with PostgreSQL")
            await self._stream.update_metadata(announcement(epoch, life))
        if given:
            log.warning("the counter stream went back; %d counters got back what PostgreSQL holds", len(given))
        flushed = before.flushed if epoch == before.epoch else 0
        head = CounterHead(epoch, life.start, flushed)
        await self._table.settle(tx, before, head, given, keep=life.epoch <= before.epoch)

    def _next_epoch(self, lost: bool) -> int:
        life, before = self._life, self._before
        if life.epoch > before.epoch:
            return life.epoch
        went_back = lost or life.epoch < before.epoch
        return max(1, before.epoch + 1 if went_back else before.epoch)

    async def _lost(self, totals: Sequence[tuple[str, int, int]]) -> list[Lost]:
        if not totals:
            return []
        held = {message.subject: message async for message in self._stream.live()}
        lost = []
        for name, value, version in totals:
            subject = self._life.prefix + keys.encode_key(keys.from_sql_key(name))
            if self._behind(held.get(subject), version):
                digest = blake2b(name.encode(), digest_size=12).hexdigest()
                lost.append(Lost(name, subject, value, version, f"=back.{self._before.epoch}.{version}.{digest}"))
        return lost

    def _behind(self, message: Message | None, version: int) -> bool:
        if message is None:
            return True
        if self._life.epoch > self._before.epoch:
            return False
        return self._life.epoch < self._before.epoch or version > message.sequence

    async def _give_back(self, lost: Lost) -> GivenBack | None:
        """Where the stream has the total again; None when it has it all the same, for a follower may have shown too
        little: the leader is asked before anything is added."""
        message = await self._stream.leader_get(lost.subject)
        if message is not None and operation_of(message) == lost.operation:
            return GivenBack(lost.name, message.sequence, total_of(message))  # a mender before this one has done it
        if not self._behind(message, lost.version):
            return None
        if time.monotonic() - self._began > limits.COUNTER_DOUBT_S:
            raise UnavailableError("comparing counters with PostgreSQL took too long: begun anew")
        missing = lost.value - (0 if message is None else total_of(message))
        added = await self._stream.increment(
            lost.subject,
            missing,
            lost.operation,
            self._core.config.kv.request_timeout_ms,
            generation=self._life.generation,
        )
        return GivenBack(lost.name, added.sequence, lost.value if added.total is None else added.total)
