"""Answers that are dear to make, kept in three tiers: L1, KV, and whoever makes them (specification 4.3).

An entry carries the server time at which it is over, in KV as in L1, so no copy outlives it. Of all who miss a key at
once, in all processes, one makes the answer: in a process they wait for one task; between processes its leader holds a
lease, an entry beside the key, which dies with it. The lease saves work and proves nothing: when KV is away or full,
every process makes its own answers, and nobody is refused for the cache's sake.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from cenote import limits
from cenote.engine.core import Core
from cenote.engine.expiring import Expiring
from cenote.errors import BackpressureError, CenoteError, NotFoundError, OutcomeUnknownError, RejectedError
from cenote.kv.errors import WrongSequence
from cenote.model import value as values
from cenote.naming import ANSWERS
from cenote.retry import Backoff

log = logging.getLogger("cenote.engine")

_ABSENT: Final = "absent"  # the codec of a negative answer
_LEASE_MS: Final = 3_000
_BRIEF_MS: Final = 1_000  # longer than that nobody waits for the cache's own sake
_LEASE_MARK: Final = "=load."
_OVERHEAD_BYTES: Final = 400  # about what a slot takes beside its texts
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


class _Answer(NamedTuple):
    codec: str
    body: bytes
    expires_ms: int

    def value(self, key: str) -> Any:
        """A copy of its own for each caller."""
        if self.codec == _ABSENT:
            raise NotFoundError(
                f"there is no answer for {key!r}", key=key, hint="that is remembered; `delete` forgets it"
            )
        return values.decode(self.codec, self.body)


class Tiered:
    """The cache of one process, and its share of everybody's."""

    def __init__(self, core: Core) -> None:
        memory = core.config.memory
        self.counts = CacheCounts()
        self._core = core
        self._bucket = Expiring(core, ANSWERS, discard="old", tells=True)
        self._near = _Near(memory.entries_max, memory.bytes_max // limits.ANSWERS_SHARE, int(memory.ttl_s * 1000))
        self._loading: dict[str, asyncio.Task[_Answer]] = {}
        self._heard: dict[str, asyncio.Event] = {}
        self._reading: dict[str, list[_Flight]] = {}
        self._listening = False

    async def get(self, key: str) -> _Answer | None:
        """An answer whose time is not over, from memory or KV. UnavailableError when KV cannot be asked."""
        subject, now_ms = self._bucket.subject(key), self._core.now_ms()
        near = self._near.get(subject, now_ms)
        if near is not None:
            self.counts.hits_l1 += 1
            return near
        known = await self._far(subject)
        if known is None or known.expires_ms <= now_ms:
            return None
        self.counts.hits_kv += 1
        return known

    async def put(self, key: str, value: object, ttl_ms: int) -> None:
        """Keep an answer. RejectedError, UnavailableError, BackpressureError: nobody else will see it."""
        codec, body = _encoded(value, key)
        subject = self._bucket.subject(key)
        self._near.drop(subject)
        await self._share(subject, _Answer(codec, body, self._core.now_ms() + ttl_ms), 0)
        self._near.drop(subject)

    async def delete(self, key: str) -> None:
        """Forget an answer, everywhere. Raises UnavailableError, OutcomeUnknownError."""
        subject = self._bucket.subject(key)
        self._near.drop(subject)
        await self._bucket.delete(subject, over=None, backoff=self._backoff(self._core.config.retry.deadline_ms))
        self._near.drop(subject)

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
        old: _Answer | None = None
        with contextlib.suppress(CenoteError):  # then it is made anew
            old = await self._far(subject)
            if old is not None and old.expires_ms > now_ms:
                self.counts.hits_kv += 1
                return old.value(key)
        if old is not None and (old.codec == _ABSENT or old.expires_ms + terms.stale_ms <= now_ms):
            old = None
        return (await self._loaded(subject, key, loader, terms, old)).value(key)

    # --- within ---------------------------------------------------------------------------------------------

    async def _far(self, subject: str) -> _Answer | None:
        """What KV has. It is kept here, unless somebody has written it while we read."""
        self._listen()
        reading = self._reading.setdefault(subject, [])
        flight = _Flight()
        reading.append(flight)
        try:
            kept = await self._bucket.read(subject)
        finally:
            reading.remove(flight)
            if not reading:
                self._reading.pop(subject, None)
        if kept is None or kept.gone:
            return None
        answer = _Answer(kept.codec, kept.body, kept.expires_ms)
        if not flight.overtaken:
            self._near.set(subject, answer, self._core.now_ms())
        return answer

    async def _loaded(
        self, subject: str, key: str, loader: Callable[[], Awaitable[Any]], terms: Terms, old: _Answer | None
    ) -> _Answer:
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
        except TimeoutError:
            if old is None or task.done():
                raise
        except Exception:
            if old is None:
                raise
            log.debug("an old answer for %s is given: none could be made", key, exc_info=True)
        self.counts.stale += 1
        return old

    def _ended(self, subject: str, task: asyncio.Task[_Answer]) -> None:
        self._loading.pop(subject, None)
        if not task.cancelled():
            task.exception()  # those who waited were told; nobody may have

    async def _load(self, subject: str, key: str, loader: Callable[[], Awaitable[Any]], terms: Terms) -> _Answer:
        async with contextlib.AsyncExitStack() as lease:
            try:
                made = await self._turn(subject, key, lease)
            except CenoteError as error:
                log.debug("no lease for an answer: %r", error)
                made = None
            if made is not None:
                self.counts.waited += 1
                return made
            answer = await self._make(key, loader, terms)
            if answer.expires_ms:
                try:
                    await self._share(subject, answer, 0 if answer.codec == _ABSENT else terms.stale_ms)
                except CenoteError as error:
                    self.counts.unshared += 1
                    log.debug("an answer is not shared: %s", error)
                    self._near.set(subject, answer, self._core.now_ms())
            return answer

    async def _make(self, key: str, loader: Callable[[], Awaitable[Any]], terms: Terms) -> _Answer:
        self.counts.loads += 1
        try:
            value = await loader()
        except NotFoundError:
            expires_ms = self._core.now_ms() + terms.absent_ms if terms.absent_ms else 0
            if not expires_ms:
                raise
            return _Answer(_ABSENT, b"", expires_ms)
        except BaseException:
            self.counts.failed += 1
            raise
        return _Answer(*_encoded(value, key), self._core.now_ms() + terms.ttl_ms)

    async def _share(self, subject: str, answer: _Answer, keep_ms: int) -> None:
        if len(answer.body) > limits.INLINE_BYTES_MAX:
            raise BackpressureError(f"an answer of {len(answer.body)} bytes is too large to be shared")
        await self._bucket.write(
            subject, answer.codec, answer.body, expires_ms=answer.expires_ms, keep_ms=keep_ms, over=None,
            backoff=self._backoff(_BRIEF_MS),
        )  # fmt: skip

    # --- one process of many --------------------------------------------------------------------------------

    async def _turn(self, subject: str, key: str, lease: contextlib.AsyncExitStack) -> _Answer | None:
        """None: it is this process's turn to make the answer; else the one that another has made meanwhile."""
        beside = self._bucket.subject(key, _LEASE_MARK)
        heard = self._heard.setdefault(subject, asyncio.Event())
        self._listen()
        try:
            while True:
                held = await self._bucket.read(beside)
                free = held is None or held.gone or held.expires_ms <= self._core.now_ms()
                if free and (taken := await self._taken(beside, 0 if held is None else held.sequence)):
                    lease.push_async_callback(
                        self._release, beside, taken, asyncio.create_task(self._renew(beside, taken))
                    )
                made = await self._far(subject)
                if made is not None and made.expires_ms > self._core.now_ms():
                    return made
                if free and taken:
                    return None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await heard.wait()
                heard.clear()
        finally:
            self._heard.pop(subject, None)

    async def _taken(self, beside: str, over: int) -> "_Lease | None":
        lease = _Lease(over)
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
        self._near.drop(text)
        for flight in self._reading.get(text, ()):
            flight.overtaken = True
        heard = self._heard.get(text)
        if heard is not None:
            heard.set()

    def _backoff(self, deadline_ms: float) -> Backoff:
        return Backoff(self._core.config.retry, deadline_ms)


@dataclass(eq=False)
class _Flight:
    """A read of KV on its way; overtaken: somebody wrote the entry meanwhile."""

    overtaken: bool = False


@dataclass
class _Lease:
    """The right to make an answer: the place of its entry."""

    sequence: int


class _Near:
    """This process's memory of answers: the least recently used one leaves first, and none stays beyond its time."""

    def __init__(self, entries_max: int, bytes_max: int, ttl_ms: int) -> None:
        self._held: OrderedDict[str, tuple[_Answer, int]] = OrderedDict()
        self._entries_max, self._bytes_max, self._ttl_ms = entries_max, bytes_max, ttl_ms
        self._bytes = 0

    def get(self, subject: str, now_ms: int) -> _Answer | None:
        """The answer, if its time is not over."""
        found = self._held.get(subject)
        if found is None:
            return None
        answer, until_ms = found
        if until_ms <= now_ms:
            self.drop(subject)
            return None
        self._held.move_to_end(subject)
        return answer

    def set(self, subject: str, answer: _Answer, now_ms: int) -> None:
        """Hold it, and let go of others for it."""
        self.drop(subject)
        size = _size(subject, answer)
        if answer.expires_ms <= now_ms or size > self._bytes_max:
            return
        self._held[subject] = answer, min(answer.expires_ms, now_ms + self._ttl_ms)
        self._bytes += size
        while len(self._held) > self._entries_max or self._bytes > self._bytes_max:
            self.drop(next(iter(self._held)))

    def drop(self, subject: str) -> None:
        """Let go of one."""
        found = self._held.pop(subject, None)
        if found is not None:
            self._bytes -= _size(subject, found[0])

    def clear(self) -> None:
        """Let go of all."""
        self._held.clear()
        self._bytes = 0

    def sweep(self, now_ms: int) -> int:
        """Let go of what is over; how many."""
        over = [subject for subject, (_, until_ms) in self._held.items() if until_ms <= now_ms]
        for subject in over:
            self.drop(subject)
        return len(over)


def _size(subject: str, answer: _Answer) -> int:
    return len(subject) + len(answer.body) + _OVERHEAD_BYTES


def _encoded(value: object, key: str) -> tuple[str, bytes]:
    """Codec and body of an answer. RejectedError names the path within it."""
    try:
        return values.encode(value)
    except RejectedError as error:
        error.key = key
        raise
