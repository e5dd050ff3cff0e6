"""Counters of a swarm: any number of processes add, and nobody reads first (I5, I12; flow rules 8, 15, 16).

The KV server adds up itself and answers with the new total (`kv/counters.py`), so there is no conflict to be settled
and nothing to hydrate: totals stay in KV, SQL has a copy (`engine/counter_flush.py`).

An increment whose answer was lost is asked for by its id, with an increment of nothing: where the server knows the id,
it was counted; where it did not, it knows it now, so the first one, should it still be on its way, will be taken for
a repeat, and it may be added under a new id. That proves something only while the same server remembers: the same
start of it, the same leader, the same stream, and less time since the first attempt than it remembers ids for. All of
that is checked after the answer; else the outcome is unknown, unless the counter's last message bears the very id.
What is left: a network that holds an increment back for longer than that, and delivers it after its connection's end.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator

from cenote import limits
from cenote.engine.core import Core, reading
from cenote.engine.counter_life import Life, look
from cenote.engine.counter_mender import mend
from cenote.engine.epoch import STORE_KEY
from cenote.errors import CodecError, OutcomeUnknownError, RejectedError, UnavailableError
from cenote.kv.counters import Added, CounterStream, amount_of, operation_of, total_of
from cenote.kv.deadline import patient
from cenote.kv.errors import AnswerLost, NoResponders
from cenote.kv.message import Message
from cenote.model import key as keys
from cenote.retry import Backoff
from cenote.sql.counters import CounterTable

AMOUNT_MAX = 2**63 - 1
_ASK_S = 0.03
_dice = random.Random()  # its own: a program that seeds the global one must get what it expects


class _NotCounted(Exception):
    """The server has shown that an increment was not counted, and will not be."""


class Counters:
    """The counters of one open store."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.stream = CounterStream(core.link, core.names, timeout_ms=core.config.kv.request_timeout_ms)
        self.table = CounterTable(core.db)
        self._life: Life | None = None
        self._lock = asyncio.Lock()
        self._operations = 0
        self.counted = False
        """Whether this process has added anything."""

    # --- adding -----------------------------------------------------------------------------------------------

    async def add(self, name: str, amount: int) -> int:
        """The new total. Raises as `SwarmCounter.add`."""
        core = self._core
        core.admit(deleting=True)
        token, backoff = keys.encode_key(name), self._backoff()
        while True:
            try:
                return await self._add(name, token, amount, backoff)
            except _NotCounted:
                continue

    async def _add(self, name: str, token: str, amount: int, backoff: Backoff) -> int:
        core = self._core
        self._operations += 1
        operation = f"{core.writer_id}.{self._operations:x}"
        while True:
            life: Life | None = None
            began = time.monotonic()
            try:
                life = await self._ready(backoff)
                subject = keys.check_subject(life.prefix + token)
                added = await self.stream.increment(
                    subject, amount, operation, core.attempt_ms(backoff), generation=life.generation
                )
                self.counted = True
                return await self._total(subject, added)
            except AnswerLost as error:
                assert life is not None, "a look is a question: its lost answer is UnavailableError"
                if amount:
                    doubt = _Doubt(core, self.stream, life, life.prefix + token, operation, began)
                    return await self._total(life.prefix + token, await doubt.settle(name, backoff))
                await backoff.pause(UnavailableError(str(error)))  # nothing can be counted twice
            except UnavailableError as error:
                if isinstance(error, NoResponders):
                    self._life = None  # the stream may be gone
                await backoff.pause(error)

    async def _total(self, subject: str, added: Added) -> int:
        """A repeat is acknowledged without a total: the one at its sequence, or the newest, which includes it."""
        if added.total is not None:
            return added.total
        with reading():
            message = await self.stream.leader_get_sequence(added.sequence) or await self.stream.leader_get(subject)
        if message is None:
            raise OutcomeUnknownError("counted, but the counter is gone", tier="DISTRIBUTED_KV")
        return total_of(message)

    # --- reading ----------------------------------------------------------------------------------------------

    async def value(self, name: str) -> int:
        """The total; 0 for a counter that nobody has added to."""
        core, token, backoff = self._core, keys.encode_key(name), self._backoff()
        while True:
            try:
                life = await self._known(backoff)
                if life is None:
                    return 0
                message = await self._read(keys.check_subject(life.prefix + token))
                if message is not None:
                    return total_of(message)
                now = await look(core, self.stream)  # another life of the stream has it under another subject
                if now is not None and now.settled and now.prefix == life.prefix:
                    return 0
                self._life = None
            except UnavailableError as error:
                if isinstance(error, NoResponders):
                    self._life = None
                await backoff.pause(error)

    async def _read(self, subject: str) -> Message | None:
        with reading():
            if self._core.replicas is not None:
                return await self.stream.leader_get(subject)
            return await self.stream.get(subject.encode())

    async def totals(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        """Every counter whose name begins with `prefix`, once, in no order."""
        narrowed, self._life = keys.encode_prefix(prefix), None
        life = await self._known(self._backoff())
        if life is None:
            return
        first, dot, _ = narrowed.rpartition(".")
        seen: set[str] = set()
        with reading():
            async for message in self.stream.live(f"{life.prefix}{first}{dot}>"):
                try:
                    name = keys.decode_token(message.subject[len(life.prefix) :])
                except CodecError:
                    continue  # not one of ours
                if name.startswith(prefix) and name not in seen:
                    seen.add(name)
                    yield name, total_of(message)

    # --- the stream -------------------------------------------------------------------------------------------

    def _backoff(self) -> Backoff:
        config = self._core.config
        return Backoff(patient(config.retry), config.kv.deadline_ms)

    async def _ready(self, backoff: Backoff) -> Life:
        """The stream, made if there is none, and compared with SQL since its server started."""
        life = self._life
        if life is not None and life.generation == self._core.link.generation:
            return life
        life = await self._known(backoff, create=True)
        assert life is not None, "it was created"
        return life

    async def _known(self, backoff: Backoff, *, create: bool = False) -> Life | None:
        """The same, but None when nobody has ever counted; SQL may know of a stream that is gone."""
        core, life = self._core, self._life
        if life is not None and life.generation == core.link.generation:
            return life
        try:
            async with asyncio.timeout(backoff.left_ms / 1000), self._lock:
                life = self._life
                if life is None or life.generation != core.link.generation:
                    life = self._life = await self._settled(create=create)
                return life
        except TimeoutError as error:
            raise UnavailableError(
                "counters have not been compared with PostgreSQL since the KV server started",
                tier="DISTRIBUTED_KV",
                hint="is PostgreSQL up?",
            ) from error

    async def _settled(self, *, create: bool) -> Life | None:
        """Whoever makes the stream compares it, and else the flusher; anybody, when that takes long."""
        core, stream = self._core, self.stream
        mending_at = time.monotonic() + (1 + _dice.random()) * limits.LEASE_EXPIRE_MS / 1000
        while True:
            life = await look(core, stream)
            if life is None:
                if not create and await self.table.head() is None:
                    return None
                await make(core, stream)
                mending_at = 0
            elif life.settled:
                return life
            elif time.monotonic() >= mending_at:
                await mend(core, stream, self.table)
            else:
                await asyncio.sleep(_ASK_S)


async def make(core: Core, stream: CounterStream) -> None:
    """Create the stream under the store's id. Raises SetupError, UnavailableError."""
    with reading():
        await stream.create(core.config.kv, {STORE_KEY: core.epochs.store_id})


class _Doubt:
    """An increment whose answer was lost."""

    def __init__(
        self, core: Core, stream: CounterStream, life: Life, subject: str, operation: str, began: float
    ) -> None:
        self._core = core
        self._stream = stream
        self._life = life
        self._subject = subject
        self._operation = operation
        self._began = began

    async def settle(self, name: str, backoff: Backoff) -> Added:
        """Where it was counted.

        Raises:
            _NotCounted: nowhere, for certain and for ever.
            OutcomeUnknownError: nobody can tell.
        """
        ended: int | None = None  # where the stream ended before we asked anything; None: not known
        asked = False
        while True:
            try:
                life = await look(self._core, self._stream)
                if life is None or not self._life.same(life):
                    return await self._by_its_last_message(name)
                ended = life.last_seq if ended is None else ended
                again, asked = asked, True
                answer = await self._stream.increment(
                    self._subject, 0, self._operation, self._core.attempt_ms(backoff), generation=life.generation
                )
                return await self._judge(name, answer, again and answer.sequence > ended)
            except (UnavailableError, AnswerLost) as error:
                try:
                    await backoff.pause(UnavailableError(str(error)))
                except UnavailableError:
                    raise _unknown(name) from error

    async def _judge(self, name: str, answer: Added, ours: bool) -> Added:
        """ours: the message found may be that of an earlier question, whose answer was lost as well."""
        life = await look(self._core, self._stream)
        late = time.monotonic() - self._began > limits.COUNTER_DOUBT_S
        if answer.total is not None:
            if late or not self._life.same(life):
                raise _unknown(name)
            raise _NotCounted
        if ours:
            message = await self._stream.leader_get_sequence(answer.sequence)
            if message is None or operation_of(message) != self._operation:
                raise _unknown(name)
            if amount_of(message) == 0:
                if late or not self._life.same(life):
                    raise _unknown(name)
                raise _NotCounted
        return answer

    async def _by_its_last_message(self, name: str) -> Added:
        message = await self._stream.leader_get(self._subject)
        if message is not None and operation_of(message) == self._operation and amount_of(message):
            return Added(message.sequence, total_of(message))
        raise _unknown(name)


def _unknown(name: str) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        "the answer was lost: the increment may or may not have been counted",
        key=name,
        tier="DISTRIBUTED_KV",
        hint="read the counter before adding again",
    )


class SwarmCounter:
    """A number that everybody may add to at once; the KV server adds up. Get it from `store.counter()`."""

    __slots__ = ("_counters", "_name")

    def __init__(self, counters: Counters, name: str) -> None:
        keys.encode_key(name)
        self._counters = counters
        self._name = name

    @property
    def name(self) -> str:
        """How it was named."""
        return self._name

    def __repr__(self) -> str:
        return f"SwarmCounter({self._name!r})"

    async def add(self, n: int = 1) -> int:
        """Add `n`, which may be negative; the new total. Others may have added meanwhile: two calls never get the same
        total for increments of 1, and the last one gets the sum of all.

        Raises:
            RejectedError: `n` is no integer from -(2**63 - 1) to 2**63 - 1.
            UnavailableError: NATS could not be reached within `kv.deadline_ms`, or its counters have not been compared
                with PostgreSQL since it started; nothing was counted.
            OutcomeUnknownError: the answer was lost, and the server that could tell has been restarted since.
            SetupError: the NATS server is older than 2.12, or the counters are another store's.
        """
        if isinstance(n, bool) or not isinstance(n, int):
            raise RejectedError(f"n: an integer is needed, not {type(n).__name__}")
        if abs(n) > AMOUNT_MAX:
            raise RejectedError(f"n: {n.bit_length()} bits; -(2**63 - 1) to 2**63 - 1 are allowed")
        return await self._counters.add(self._name, n)

    async def value(self) -> int:
        """The total now; 0 when nobody has added. UnavailableError when NATS cannot be reached."""
        return await self._counters.value(self._name)
