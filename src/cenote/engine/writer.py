"""Writes: publish, acknowledgement, and what to do when the answer is lost (I5, I12; flow rules 6, 15, 16).

Every write of state gets its version from the stream; there is no second road into SQL. A repeat is sent only after a
proof that the first was not accepted. After a lost answer the leader's entry decides: it carries the operation id.
"""

import asyncio
import math
import time
from typing import NamedTuple

import msgspec

from cenote import limits, points
from cenote.engine import entries
from cenote.engine.blobs import Placed
from cenote.engine.cache import Ticket
from cenote.engine.core import Core, reading
from cenote.engine.entries import Target
from cenote.engine.hydrator import Hydrator
from cenote.engine.waiting import until_mended
from cenote.errors import BackpressureError, ConflictError, OutcomeUnknownError, UnavailableError
from cenote.kv.deadline import patient
from cenote.kv.errors import AnswerLost, WrongSequence
from cenote.kv.mux import Reply
from cenote.kv.stream import sequence_of
from cenote.model import entry
from cenote.model.entry import Stored, Version
from cenote.retry import Backoff


class Content(msgspec.Struct, frozen=True, gc=False):
    """What a write puts under a key."""

    codec: str
    body: bytes
    expires_ms: int | None = None
    deleted: bool = False


TOMBSTONE = Content(entries.NO_VALUE, b"", None, True)


class Sent(msgspec.Struct, frozen=True, gc=False):
    """What is noted before a write is sent: L1's ticket, the KV server's time, ours, and where the stream ended at
    the last look."""

    ticket: Ticket | None
    server_ms: int
    began: float
    seen: int


class Base(NamedTuple):
    """What a compare-and-set builds on: the entry that KV holds, and the connection under which its sequence means it
    (F-conn)."""

    held: Stored
    live: bool
    generation: int

    @property
    def stored(self) -> Stored | None:
        """The state of the key; None when there is none, or it is deleted or expired."""
        return self.held if self.live else None


class Writer:
    """Publishes writes for one process; its id and a counter make the operation id of each."""

    def __init__(self, core: Core, hydrator: Hydrator) -> None:
        self._core = core
        self._hydrator = hydrator
        self._writer_id = core.writer_id
        self._timeout_ms = core.config.kv.request_timeout_ms
        self._operations = 0

    async def write(self, target: Target, content: Content) -> Stored:
        """Put or delete whatever is there; the newest write wins by the stream's order.

        Raises:
            UnavailableError: KV could not be reached within `kv.deadline_ms`; nothing was written.
            OutcomeUnknownError: the answer was lost, and the leader does not show this write.
            BackpressureError: the unflushed backlog is full; nothing was written.
        """
        core = self._core
        large = len(content.body) > limits.INLINE_BYTES_MAX
        core.admit(0 if large else len(content.body), deleting=content.deleted)
        if large:
            content, _ = await self.placed(target, content)
        operation = self._operation()
        header = header_lines(content, operation, core.format)
        sent = self.begin(target)
        try:
            try:
                if points.armed:
                    await points.hit("write.ready")
                sequence = sequence_of(await self._send(target, header, content.body, self._timeout_ms))
            except (UnavailableError, AnswerLost) as error:
                sequence = await self._insist(target, header, content.body, operation, error, began=sent.began)
        except BaseException as error:
            core.cache.forget(target.subject)
            if isinstance(error, BackpressureError):
                core.fullness.refused()
            raise
        if points.armed:
            await points.hit("write.acked")
        return self.done(target, content, sequence, operation, sent)

    def _send(self, target: Target, header: bytes, body: bytes, timeout_ms: int) -> asyncio.Future[Reply]:
        return self._core.stream.publish_nowait(target.wire, header, body, timeout_ms)

    async def _insist(
        self,
        target: Target,
        header: bytes,
        body: bytes,
        operation: str,
        error: UnavailableError | AnswerLost,
        *,
        began: float,
    ) -> int:
        """What follows a failed first attempt: another one after each proof that nothing was accepted, a look at the
        leader when the answer was lost."""
        core = self._core
        core.stir()  # the bucket may be gone
        backoff = Backoff(patient(core.config.retry), core.config.kv.deadline_ms, began=began)
        while True:
            if isinstance(error, AnswerLost):
                return await self._settle(target, operation, backoff, error)
            await backoff.pause(error)
            try:
                if points.armed:
                    await points.hit("write.ready")
                return sequence_of(await self._send(target, header, body, core.attempt_ms(backoff)))
            except (UnavailableError, AnswerLost) as again:
                error = again

    async def replace(
        self, target: Target, base: Base, content: Content, operation: str, backoff: Backoff
    ) -> Stored | None:
        """Compare-and-set over `base`; None when another write came first.

        Raises:
            OutcomeUnknownError: an answer was lost and the leader shows neither this write nor `base`.
        """
        core = self._core
        if points.armed:
            await points.hit("write.compared")
        header = header_lines(content, operation, core.format)
        sent = self.begin(target)
        lost = False
        try:
            while True:
                timeout_ms = core.attempt_ms(backoff)
                try:
                    if lost or core.link.generation != base.generation:
                        base = await self._again(target, base, operation, lost, timeout_ms)
                        if core.link.generation != base.generation:
                            continue
                    reply = await core.stream.publish_nowait(
                        target.wire, header, content.body, timeout_ms, base.held.sequence
                    )
                    return self.done(target, content, sequence_of(reply), operation, sent)
                except _DoneBefore as done:
                    return self.done(target, content, done.sequence, operation, sent)
                except WrongSequence:
                    if not lost:
                        core.cache.forget(target.subject)
                        return None
                    sequence = await self._settle(target, operation, backoff, None)
                    return self.done(target, content, sequence, operation, sent)
                except AnswerLost as error:
                    # The same operation over the same base can take effect once only, so it may be sent again.
                    lost = True
                    await backoff.pause(UnavailableError(str(error)))
                except UnavailableError as error:
                    await backoff.pause(error)
        except BaseException as error:
            core.cache.forget(target.subject)
            if isinstance(error, BackpressureError):
                core.fullness.refused()
            if lost and isinstance(error, UnavailableError):
                raise _unknown(target) from error
            raise

    def backoff(self, left_ms: float = math.inf) -> Backoff:
        """The deadline of one step, `kv.deadline_ms` or what the caller has left, and its pauses."""
        config = self._core.config
        return Backoff(patient(config.retry), min(config.kv.deadline_ms, left_ms))

    async def base(self, target: Target, backoff: Backoff, *, deleting: bool = False) -> Base:
        """The state of a key to build on, with a sequence to compare (F-mark): a key that only SQL holds is hydrated
        first, one that nobody holds gets a clean tombstone, so that no dirty write ever expects "nothing".

        Raises:
            UnavailableError: KV or SQL cannot be reached.
        """
        core = self._core
        while True:
            try:
                core.admit(deleting=deleting)
                with reading():
                    async with asyncio.timeout(backoff.left_ms / 1000):
                        found = await self._hydrator.believed(target)
                if found is not None:
                    stored, generation = found
                    return Base(stored, not core.gone(stored), generation)
                await backoff.pause(UnavailableError("the hydration of a key was overtaken again and again"))
            except TimeoutError as error:
                words = "what the key holds could not be read in time"
                raise UnavailableError(words, key=target.key, tier="RELATIONAL_DB") from error
            except UnavailableError as error:
                await backoff.pause(error)

    async def write_if(self, target: Target, content: Content, expected: Version | None) -> Stored:
        """Write only if the key's version is `expected`; None = the key must not exist in any tier.

        Raises:
            ConflictError: it is another.
        """
        operation, placed = self._operation(), None
        backoff = self.backoff()
        while True:
            base = await self.base(target, backoff, deleting=content.deleted)
            actual = None if base.stored is None else base.stored.version
            if actual != expected:
                raise version_conflict(target, expected, actual)
            small, placed = await self.placed(target, content, placed)
            stored = await self.replace(target, base, small, operation, backoff)
            if stored is not None:
                return stored

    async def placed(
        self, target: Target, content: Content, before: Placed | None = None
    ) -> tuple[Content, Placed | None]:
        """What KV is to hold: the content itself, or for a large value a reference to bytes that SQL has by now, and
        what was committed for it. `before`: of an earlier attempt of the operation that was not published (rule 20)."""
        if len(content.body) <= limits.INLINE_BYTES_MAX:
            return content, before
        timeout_ms = self._core.config.kv.deadline_ms
        placed = await self._core.blobs.put(target, content.codec, content.body, timeout_ms, before)
        return msgspec.structs.replace(content, codec=entries.BLOB, body=placed.reference), placed

    def next_operation(self) -> str:
        """An id for one operation of the caller, however many attempts it takes."""
        return self._operation()

    async def _again(self, target: Target, base: Base, operation: str, lost: bool, timeout_ms: int) -> Base:
        """Read `base` again at the leader; it must be the same entry, or the operation itself, or we cannot know.

        A number proves nothing here: a server that lost its tail has given it to another entry (F-conn). Each entry
        bears an operation id of its own, a copy made by a hydration too.
        """
        core = self._core
        generation = core.link.generation
        if core.mended != generation:
            await until_mended(core, timeout_ms)  # the same entry may have come back, older than SQL (F-wait)
        found = await core.leader(target, timeout_ms)
        if found is not None and found.op == operation:
            raise _DoneBefore(found.sequence)
        if found is None or not _same(found, base.held):
            raise _unknown(target) if lost else WrongSequence(400, 10071, "the key has changed")
        return base._replace(generation=generation)

    async def _settle(self, target: Target, operation: str, backoff: Backoff, cause: BaseException | None) -> int:
        """After a lost answer: the sequence under which the leader holds this very operation."""
        core = self._core
        while True:
            try:
                found = await core.leader(target, core.attempt_ms(backoff))
                break
            except (UnavailableError, AnswerLost) as error:
                try:
                    await backoff.pause(error if isinstance(error, UnavailableError) else UnavailableError(str(error)))
                except UnavailableError:
                    raise _unknown(target) from (cause or error)
        if found is None or found.op != operation:
            raise _unknown(target) from cause
        return found.sequence

    def begin(self, target: Target) -> Sent:
        """To be called before a write is sent."""
        core = self._core
        ticket = core.cache.ticket(target.subject) if core.coherence.listening else None
        return Sent(ticket, core.sent_ms(), time.monotonic(), core.seen_sequence)

    def done(self, target: Target, content: Content, sequence: int, operation: str, sent: Sent) -> Stored:
        """A write was acknowledged under this sequence: take it into L1, and count it."""
        core = self._core
        version = Version(core.epochs.newest, sequence)
        # An ack carries no time. The moment of sending is a lower bound, which is also what a receipt needs.
        written_us = (sent.server_ms or core.now_ms()) * 1000
        stored = Stored(
            version, sequence, content.codec, content.body, content.deleted, written_us,
            content.expires_ms, False, sent.server_ms, operation,
        )  # fmt: skip
        if sequence > core.own_sequence:
            core.own_sequence = sequence
        if sequence <= sent.seen:
            core.went_back()
        if core.replicas is not None:
            core.replicas.met(target.subject, sequence)
        if sent.ticket is not None:
            core.cache.own_write(target.subject, stored, sent.ticket)
        elif core.coherence.listening:  # since it was sent; a read may have found what was there before
            core.cache.forget(target.subject)
        core.counts.writes += 1
        return stored

    def _operation(self) -> str:
        self._operations += 1
        return f"{self._writer_id}.{self._operations:x}"


class _DoneBefore(Exception):
    """The operation itself is what the leader holds."""

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence


def _same(found: Stored, held: Stored) -> bool:
    """Whether two looks at a key met the same message."""
    return (found.sequence, found.op, found.written_us, found.t0_ms) == (
        held.sequence, held.op, held.written_us, held.t0_ms,
    )  # fmt: skip


def _unknown(target: Target) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        f"the answer to the write of {target.key!r} was lost: it may or may not have happened",
        key=target.key, tier="DISTRIBUTED_KV", hint="read the key before you write it again",
    )  # fmt: skip


def version_conflict(target: Target, expected: Version | None, actual: Version | None) -> ConflictError:
    """A condition on a key's version does not hold."""
    wanted = "absent" if expected is None else f"at version {expected}"
    found = "absent" if actual is None else f"at version {actual}"
    return ConflictError(
        f"{target.key!r} should be {wanted} but is {found}", key=target.key, hint="read it and decide again"
    )


def header_lines(content: Content, operation: str, form: int) -> bytes:
    """The header of an entry with this content."""
    line = entry.header(content.codec, operation, content.expires_ms, form=form)
    return line + entries.TOMBSTONE if content.deleted else line
