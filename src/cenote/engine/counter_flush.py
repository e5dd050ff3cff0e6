"""Totals on their way to SQL (I3, I8; flow rules 4, 5).

A message of the counter stream carries the total, and the stream keeps the last one of each counter: so what is new
since a position is what is live beyond it, and the position is committed together with the totals. No consumer is
needed, and nothing is acknowledged: a database that was put back names an earlier position, and gets what it lacks.

The holder of the flusher's lease looks for new totals a few times a second, at most; where nobody ever counted that is
one question a second, in one process of all. `flush()` does the same at once, in whichever process it is called.
"""

import asyncio
import logging

from cenote import limits
from cenote.engine.core import Core, reading
from cenote.engine.counter_life import Life, look
from cenote.engine.counter_mender import mend
from cenote.engine.counters import make
from cenote.errors import CenoteError, CodecError, NotDurableError, OutcomeUnknownError, UnavailableError
from cenote.kv.counters import CounterStream, total_of
from cenote.model import key as keys
from cenote.sql.counters import CounterHead, CounterRow, CounterTable

log = logging.getLogger("cenote.engine")

_RETRY_S = 0.05


class CounterFlush:
    """Brings totals to SQL; any number of these, in any process, may do so beside each other."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._stream = CounterStream(core.link, core.names, timeout_ms=core.config.kv.request_timeout_ms)
        self._table = CounterTable(core.db)
        self._head: CounterHead | None = None  # where SQL stood last

    async def run(self) -> None:
        """For as long as the lease is held; its troubles are its own."""
        told, missing = "", False
        while True:
            busy = False
            try:
                life = await look(self._core, self._stream)
                if life is not None:
                    missing, busy = False, await self._some(life)
                elif not missing:
                    missing = await self._none_needed()
                told = ""
            except (CenoteError, TimeoutError) as error:
                self._head = None
                if str(error) != told:
                    log.warning("counters are not flushed: %s", error)
                    told = str(error)
            except Exception:
                log.exception("flushing counters met an error of its own and begins anew")
            await asyncio.sleep((limits.COUNTER_LOOK_MS if busy else limits.COUNTER_LOOK_CALM_MS) / 1000)

    async def everything(self, timeout: float | None) -> None:
        """Wait until SQL has every total that was acknowledged so far.

        Raises:
            NotDurableError: not within `timeout` seconds.
            OutcomeUnknownError: the connection to NATS was replaced meanwhile.
        """
        generation = self._core.link.generation
        try:
            async with asyncio.timeout(timeout):
                life = await look(self._core, self._stream)
                goal = 0 if life is None else life.last_seq
                while life is not None and not self._reached(life, goal):
                    try:
                        if not await self._some(life):
                            await asyncio.sleep(_RETRY_S)
                        life = await look(self._core, self._stream)
                    except UnavailableError:
                        self._head = None  # the caller's own timeout decides how long that may last
                        await asyncio.sleep(_RETRY_S)
                    if self._core.link.generation != generation:
                        raise OutcomeUnknownError(
                            "the connection to NATS was replaced while waiting for PostgreSQL",
                            hint="call flush() again",
                        )
        except TimeoutError:
            raise NotDurableError(
                f"not every counter is in PostgreSQL after {timeout} s", hint="nothing is lost; see `cenote status`"
            ) from None

    def _reached(self, life: Life, goal: int) -> bool:
        head = self._head
        return head is not None and self._fits(head, life) and head.flushed >= goal

    def _fits(self, head: CounterHead, life: Life) -> bool:
        return life.settled and head[:2] == (life.epoch, life.start) and head.flushed <= life.last_seq

    async def _none_needed(self) -> bool:
        """There is no stream: made anew when SQL knows counters, which then come back."""
        if await self._table.head() is None:
            return True
        await make(self._core, self._stream)
        await mend(self._core, self._stream, self._table)
        return False

    async def _some(self, life: Life) -> bool:
        """One page of new totals; whether there was anything to do. Raises UnavailableError."""
        head = self._head
        if head is None or not self._fits(head, life):
            head = self._head = await self._table.head()
        if head is None or not self._fits(head, life):
            self._head = None
            await mend(self._core, self._stream, self._table)
            return True
        if head.flushed == life.last_seq:
            return False
        rows, upto = await self._new(life, head.flushed)
        if upto == head.flushed:
            return False  # a follower that lags behind
        if self._core.link.generation != life.generation:
            raise UnavailableError("reconnected while totals were read", tier="DISTRIBUTED_KV")
        self._head = None
        if await self._table.flush(list(rows.values()), head, upto):
            self._head = head._replace(flushed=upto)
        return True

    async def _new(self, life: Life, flushed: int) -> tuple[dict[str, CounterRow], int]:
        rows: dict[str, CounterRow] = {}
        with reading():
            async for message in self._stream.live(from_sequence=flushed + 1):
                flushed = message.sequence
                try:
                    name = keys.sql_key(keys.decode_token(message.subject[len(life.prefix) :]))
                    rows[name] = CounterRow(name, total_of(message), message.sequence, message.time_us)
                except (CodecError, ValueError):
                    continue  # not one of ours
                if len(rows) == limits.COUNTERS_PAGE:
                    break
        return rows, flushed
