"""Answers that are dear to make, kept in three tiers: L1, KV, and whoever makes them (specification 4.3).

An entry carries the server time at which it is over, in KV as in L1, so no copy outlives it. Of all who miss a key at
once, in all processes, one makes the answer: in a process they wait for one task; between processes its leader holds a
lease, an entry beside the key, which dies with it. The lease saves work and proves nothing: when KV is away or full,
every process makes its own answers, and nobody is refused for the cache's sake.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from cenote import limits
from cenote.engine.core import Core
from cenote.engine.expiring import Expiring
from cenote.engine.near import ABSENT, Answer, Near
from cenote.errors import (
    BackpressureError,
    CenoteError,
    NotFoundError,
    OutcomeUnknownError,
    RejectedError,
    UnavailableError,
)
from cenote.kv.errors import WrongSequence
from cenote.model import value as values
from cenote.naming import ANSWERS
from cenote.retry import Backoff

log = logging.getLogger("cenote.engine")

_LEASE_MS: Final = 3_000
_BRIEF_MS: Final = 2_000  # longer than that nobody waits for the cache's own sake
_AWAY_S: Final = 1.0  # after a failure KV is left alone for so long
_LEASE_MARK: Final = "=load."
_LOOK_S: Final = 0.05  # between two looks of those who wait for another process; what it stores they hear at once


class Terms(NamedTuple):
    """How one answer is to be kept, in ms. stale_ms: how long after its end it may be given when none can be made;
    soft_ms: how long a caller waits for a new one when he can have such an old one; absent_ms: how long "there is
    none" is kept, 0: not at all."""

    ttl_ms: int
    stale_ms: int
    soft_ms: int | None
    absent_ms: int


@dataclass
class CacheCounts:
    """What became of this process's questions.

    Attributes:
        hits_l1, hits_kv: answered by this process's memory, by KV.
        loads: answers that were made here.
        waited: questions that got an answer which was being made already.
        stale: answers given after their time, because none could be made, or not soon enough.
        failed: loads that raised.
        unshared: answers that KV did not take, for want of room or because it was away.
    """

    hits_l1: int = 0
    hits_kv: int = 0
    loads: int = 0
    waited: int = 0
    stale: int = 0
    failed: int = 0
    unshared: int = 0


class Tiered:
    """The cache of one process, and its share of everybody's."""

    def __init__(self, core: Core) -> None:
        memory = core.config.memory
        self.counts = CacheCounts()
        self._core = core
        self._bucket = Expiring(core, ANSWERS, discard="old", tells=True)
        self._near = Near(memory.entries_max, memory.bytes_max // limits.ANSWERS_SHARE, int(memory.ttl_s * 1000))
        self._loading: dict[str, asyncio.Task[Answer]] = {}
        self._heard: dict[str, asyncio.Event] = {}
        self._flights: dict[str, list[_Flight]] = {}
        self._listening = False
        self._away_until_s = 0.0

    async def get(self, key: str) -> Answer | None:
        """An answer whose time is not over, from memory or KV. UnavailableError when KV cannot be asked."""
        subject, now_ms = self._bucket.subject(key), self._core.now_ms()
        near = self._near.get(subject, now_ms)
        if near is not None:
            self.counts.hits_l1 += 1
            return near
        known = (await self._far(subject)).answer
        if known is None or known.expires_ms <= now_ms:
            return None
        self.counts.hits_kv += 1
        return known

    async def put(self, key: str, value: object, ttl_ms: int) -> None:
        """Keep an answer. RejectedError, UnavailableError, BackpressureError: nobody else will see it."""
        codec, body = _encoded(value, key)
        subject = self._bucket.subject(key)
        self._forget(subject)
        await self._share(subject, Answer(codec, body, self._core.now_ms() + ttl_ms), 0, None)
        self._forget(subject)

    async def delete(self, key: str) -> None:
        """Forget an answer, everywhere. Raises UnavailableError, OutcomeUnknownError."""
        subject = self._bucket.subject(key)
        self._forget(subject)
        await self._bucket.delete(subject, over=None, backoff=self._backoff(self._core.config.retry.deadline_ms))
        self._forget(subject)

    def evict_expired(self) -> int:
        """Give back the memory of what is over; how many that were. What nobody asks for leaves by itself, later."""
        return self._near.sweep(self._core.now_ms())

    async def find(self, key: str, loader: Callable[[], Awaitable[Any]], terms: Terms) -> Any:
        """The value: from memory, from KV, or made by `loader`, once for all who ask. Raises what the loader raises."""
        subject, now_ms = self._bucket.subject(key), self._core.now_ms()
        near = self._near.get(subject, now_ms)
        if near is not None:
            self.counts.hits_l1 += 1
            return near.value(key)
        old = None
        if time.monotonic() >= self._away_until_s:
            with contextlib.suppress(CenoteError):  # then it is made anew
                async with self._briefly():
                    old = (await self._far(subject)).answer
                if old is not None and old.expires_ms > now_ms:
                    self.counts.hits_kv += 1
                    return old.value(key)
        if old is not None and (old.codec == ABSENT or old.expires_ms + terms.stale_ms <= now_ms):
            old = None
        return (await self._loaded(subject, key, loader, terms, old)).value(key)

    # --- within ---------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _briefly(self) -> AsyncIterator[None]:
        """What KV does not do soon, it does not do for us; the next questions then do without it for a while."""
        try:
            async with asyncio.timeout(_BRIEF_MS / 1000):
                yield
        except (TimeoutError, UnavailableError) as error:
            self._away_until_s = time.monotonic() + _AWAY_S
            if isinstance(error, UnavailableError):
                raise
            raise UnavailableError("KV did not answer in time", tier="DISTRIBUTED_KV") from error

    @contextlib.contextmanager
    def _watched(self, subject: str) -> Iterator["_Flight"]:
        """Notes whether anybody writes the entry meanwhile, this process included."""
        self._listen()
        flights, flight = self._flights.setdefault(subject, []), _Flight()
        flights.append(flight)
        try:
            yield flight
        finally:
            flights.remove(flight)
            if not flights:
                self._flights.pop(subject, None)

    async def _far(self, subject: str) -> "_Found":
        """What KV has. It is kept here, unless somebody has written it while we read."""
        with self._watched(subject) as flight:
            kept = await self._bucket.read(subject)
        if kept is None or kept.gone:
            return _Found(None, 0 if kept is None else kept.sequence)
        answer = Answer(kept.codec, kept.body, kept.expires_ms)
        if not flight.overtaken:
            self._near.set(subject, answer, self._core.now_ms())
        return _Found(answer, kept.sequence)

    def _forget(self, subject: str) -> None:
        """What is written now is newer than what is held, read or made here: who asks from now on begins anew."""
        self._loading.pop(subject, None)
        self._written(subject)

    def _written(self, subject: str) -> None:
        self._near.drop(subject)
        for flight in self._flights.get(subject, ()):
            flight.overtaken = True

    async def _loaded(
        self, subject: str, key: str, loader: Callable[[], Awaitable[Any]], terms: Terms, old: Answer | None
    ) -> Answer:
        task = self._loading.get(subject)
        if task is None:
            task = asyncio.create_task(self._load(subject, key, loader, terms), name="cenote-load")
            self._loading[subject] = task
            task.add_done_callback(lambda done: self._ended(subject, done))
        else:
            self.counts.waited += 1
        patience_s = None if old is None or terms.soft_ms is None else terms.soft_ms / 1000
        try:
            async with asyncio.timeout(patience_s):
                return await asyncio.shield(task)
        except NotFoundError:
            raise  # that is an answer
        except Exception:  # of the loader, or it takes too long
            if old is None:
                raise
            log.debug("an old answer for %s is given: none could be made", key, exc_info=True)
        self.counts.stale += 1
        return old

    def _ended(self, subject: str, task: asyncio.Task[Answer]) -> None:
        if self._loading.get(subject) is task:
            del self._loading[subject]
        if not task.cancelled():
            task.exception()  # those who waited were told; nobody may have

    async def _load(self, subject: str, key: str, loader: Callable[[], Awaitable[Any]], terms: Terms) -> Answer:
        async with contextlib.AsyncExitStack() as lease:
            over: int | None = None
            try:
                if time.monotonic() >= self._away_until_s:
                    found = await self._turn(subject, key, lease)
                    if found.answer is not None and found.answer.expires_ms > self._core.now_ms():
                        self.counts.waited += 1
                        return found.answer
                    over = found.sequence
            except CenoteError as error:
                log.debug("no lease for an answer: %r", error)
            with self._watched(subject) as flight:
                answer = await self._make(key, loader, terms)
            await self._kept(subject, answer, terms, over, flight)
            return answer

    async def _kept(self, subject: str, answer: Answer, terms: Terms, over: int | None, flight: "_Flight") -> None:
        """Keep what was made, in KV or else here, unless somebody wrote or deleted the entry meanwhile."""
        try:
            if over is None:
                raise UnavailableError("KV was away when the answer was begun", tier="DISTRIBUTED_KV")
            async with self._briefly():
                await self._share(subject, answer, 0 if answer.codec == ABSENT else terms.stale_ms, over)
        except WrongSequence:
            return
        except CenoteError as error:
            self.counts.unshared += 1
            log.debug("an answer is not shared: %s", error)
            if not flight.overtaken:
                self._near.set(subject, answer, self._core.now_ms())

    async def _make(self, key: str, loader: Callable[[], Awaitable[Any]], terms: Terms) -> Answer:
        self.counts.loads += 1
        try:
            value = await loader()
        except NotFoundError:
            if not terms.absent_ms:
                raise
            return Answer(ABSENT, b"", self._core.now_ms() + terms.absent_ms)
        except BaseException:
            self.counts.failed += 1
            raise
        return Answer(*_encoded(value, key), self._core.now_ms() + terms.ttl_ms)

    async def _share(self, subject: str, answer: Answer, keep_ms: int, over: int | None) -> None:
        if len(answer.body) > limits.INLINE_BYTES_MAX:
            raise BackpressureError(f"an answer of {len(answer.body)} bytes is too large to be shared")
        await self._bucket.write(
            subject, answer.codec, answer.body, expires_ms=answer.expires_ms, keep_ms=keep_ms, over=over,
            backoff=self._backoff(_BRIEF_MS),
        )  # fmt: skip

    # --- one process of many --------------------------------------------------------------------------------

    async def _turn(self, subject: str, key: str, lease: contextlib.AsyncExitStack) -> "_Found":
        """The answer that another has made meanwhile; or, where none is live, it is this process's turn to make it."""
        beside = self._bucket.subject(key, _LEASE_MARK)
        heard = self._heard.setdefault(subject, asyncio.Event())
        self._listen()
        try:
            while True:
                async with self._briefly():
                    mine = await self._taken(beside)
                    if mine is not None:
                        renewing = asyncio.create_task(self._renew(beside, mine))
                        lease.push_async_callback(self._release, beside, mine, renewing)
                    found = await self._far(subject)
                made = found.answer is not None and found.answer.expires_ms > self._core.now_ms()
                if made or mine is not None:
                    return found
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await heard.wait()
                heard.clear()
        finally:
            self._heard.pop(subject, None)

    async def _taken(self, beside: str) -> "_Lease | None":
        """The lease, if nobody holds it."""
        held = await self._bucket.read(beside)
        if held is not None and not held.gone and held.expires_ms > self._core.now_ms():
            return None
        lease = _Lease(0 if held is None else held.sequence)
        try:
            await self._hold(beside, lease)
        except (WrongSequence, OutcomeUnknownError):
            return None  # one that is ours without our knowing dies soon
        return lease

    async def _hold(self, beside: str, lease: "_Lease") -> None:
        expires_ms, backoff = self._core.now_ms() + _LEASE_MS, self._backoff(_BRIEF_MS)
        kept = await self._bucket.write(
            beside, "j", b"null", expires_ms=expires_ms, keep_ms=0, over=lease.sequence, backoff=backoff
        )
        lease.sequence = kept.sequence

    async def _renew(self, beside: str, lease: "_Lease") -> None:
        while True:
            await asyncio.sleep(_LEASE_MS / 3000)
            try:
                await self._hold(beside, lease)
            except WrongSequence:
                return  # another process has it: two answers are made, and either is right
            except CenoteError as error:
                log.debug("a lease is not renewed: %s", error)

    async def _release(self, beside: str, lease: "_Lease", renewing: asyncio.Task[None]) -> None:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        with contextlib.suppress(CenoteError):
            await self._bucket.delete(beside, over=lease.sequence, backoff=self._backoff(_BRIEF_MS))

    # --- what others write ----------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Hear of every write from the first copy on: what others replace or delete leaves our memory. A lost word
        costs at most `memory.ttl_s`, and never more than the entry's own time."""
        if not self._listening:
            self._listening = True
            self._core.link.subscribe(self._bucket.told + ">", self._on_write)
            self._core.link.on_connect.append(self._near.clear)
            self._core.on_close.append(self._leave)

    def _leave(self) -> None:
        for task in self._loading.values():
            task.cancel()

    def _on_write(self, subject: bytes, _reply: bytes, _header: bytes, _payload: bytes) -> None:
        text = self._bucket.told_of(subject.decode("ascii"))
        self._written(text)
        heard = self._heard.get(text)
        if heard is not None:
            heard.set()

    def _backoff(self, deadline_ms: float) -> Backoff:
        return Backoff(self._core.config.retry, deadline_ms)


class _Found(NamedTuple):
    """What KV has of a key; sequence: what whoever takes its place must name."""

    answer: Answer | None
    sequence: int


@dataclass(eq=False)
class _Flight:
    """A read of KV, or a load, on its way; overtaken: somebody wrote the entry meanwhile."""

    overtaken: bool = False


@dataclass
class _Lease:
    """The right to make an answer: the place of its entry."""

    sequence: int


def _encoded(value: object, key: str) -> tuple[str, bytes]:
    """Codec and body of an answer. RejectedError names the path within it."""
    try:
        return values.encode(value)
    except RejectedError as error:
        error.key = key
        raise
