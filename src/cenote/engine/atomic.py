"""Atomic batches: several keys of one agent, all or none (flow rules 6, 16, 24).

The stream is authoritative: it stores the members of a batch under sequences without a hole, or none of them. All bear
one operation id, so after a lost answer a single member that the leader still holds proves that all were stored, and
names the sequence of each. A batch is sent again only after a proof that nothing of it is stored.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import msgspec

from cenote import limits, points
from cenote.engine.blobs import Placed
from cenote.engine.core import Core, reading
from cenote.engine.entries import Target
from cenote.engine.meeting import Meeting, content_of
from cenote.engine.writer import Base, Content, Writer, header_lines
from cenote.errors import BackpressureError, ConflictError, OutcomeUnknownError, RejectedError, UnavailableError
from cenote.kv.atomic import ATOMIC_SINCE, Member, publish_batch
from cenote.kv.errors import AnswerLost, NoBatches, NotSent, WrongSequence
from cenote.model.clocked import Clocked
from cenote.model.entry import Stored, Version
from cenote.model.merging import Merging
from cenote.retry import Backoff

_SIDE_BY_SIDE = 64  # keys that are read at a time
_NAMED_MAX = 5  # keys that an error names
_T = TypeVar("_T")

Look = Callable[[Backoff], Awaitable[Mapping[str, Base]]]
"""What the keys with a condition hold, by subject, each with a sequence to compare (F-mark); asked again for each
attempt. What it raises ends the batch: nothing was written."""


class _Batch(NamedTuple):
    """What is to be written; the contents of large values are references by then."""

    targets: Sequence[Target]
    contents: Sequence[Content]
    look: Look
    operation: str


class Atomic:
    """Writes batches for one process."""

    def __init__(self, core: Core, writer: Writer, meeting: Meeting) -> None:
        self._core = core
        self._writer = writer
        self._meeting = meeting
        self._open = asyncio.Semaphore(limits.ATOMIC_OPEN_MAX)
        self._able = 0  # the connection over which the stream is known to take batches
        self._attempts = 0

    async def put(
        self,
        items: Sequence[tuple[Target, object]],
        expires_ms: int | None,
        expected: Mapping[str, Version | None],
    ) -> list[Stored]:
        """Write all or none; what was stored, in the order of `items`.

        expected: versions that some of the keys must have; None: the key must not exist in any tier.

        Raises:
            RejectedError: something cannot be written in a batch, or this NATS takes none; nothing was written.
            ConflictError: a key has another version, or others were faster until the deadline; nothing was written.
            UnavailableError, BackpressureError: nothing was written.
            OutcomeUnknownError: the answer was lost, and the leader shows no member: all were written, or none.
        """
        core, writer = self._core, self._writer
        self._demand_writable(items, expected)
        if not items:
            return []
        whole = [content_of(value, expires_ms) for _, value in items]
        inline = (len(content.body) for content in whole)
        core.admit_all([size if size <= limits.INLINE_BYTES_MAX else 0 for size in inline])
        targets = [target for target, _ in items]
        backoff = writer.backoff()
        if self._able != core.link.generation:
            await self._demand_able(backoff)
        look = partial(self._bases, [target for target in targets if target.key in expected], expected)
        return await self._write(targets, await self._placed(targets, whole), look, backoff)

    async def able(self) -> bool:
        """Whether this NATS takes batches at all. Raises UnavailableError."""
        try:
            if self._able != self._core.link.generation:
                await self._demand_able(self._writer.backoff())
        except RejectedError:
            return False
        return True

    async def over(self, items: Sequence[tuple[Target, Content]], look: Look) -> list[Stored]:
        """Write contents as they are, merging ones, too, over what `look` finds: all or none. Raises as `put`."""
        sizes = [len(content.body) for _, content in items]
        self._core.admit_all(sizes)
        return await self._write([one[0] for one in items], [one[1] for one in items], look, self._writer.backoff())

    async def _write(
        self, targets: Sequence[Target], contents: Sequence[Content], look: Look, backoff: Backoff
    ) -> list[Stored]:
        core, writer = self._core, self._writer
        batch = _Batch(targets, contents, look, writer.next_operation())
        begun = writer.begin(targets[0])
        listening = begun.ticket is not None
        tickets = [core.cache.ticket(target.subject) if listening else None for target in targets]
        sent = [msgspec.structs.replace(begun, ticket=ticket) for ticket in tickets]
        try:
            first = await self._insist(batch, backoff)
        except BaseException as error:
            for target in targets:
                core.cache.forget(target.subject)
            if isinstance(error, BackpressureError):
                core.fullness.refused()
            raise
        if points.armed:
            await points.hit("batch.acked")
        return [
            writer.done(target, content, first + index, batch.operation, sent[index])
            for index, (target, content) in enumerate(zip(targets, contents, strict=True))
        ]

    def _demand_writable(self, items: Sequence[tuple[Target, object]], expected: Mapping[str, Version | None]) -> None:
        if len(items) > limits.ATOMIC_KEYS_MAX:
            raise RejectedError(
                f"{len(items)} keys in one atomic batch; {limits.ATOMIC_KEYS_MAX} at most",
                hint="without atomic=True there is no limit",
            )
        unwritten = expected.keys() - {target.key for target, _ in items}
        if unwritten:
            raise RejectedError(f"if_version names keys that are not written: {sorted(unwritten)[:_NAMED_MAX]}")
        for target, value in items:
            # Who names the version that is there may write over it, as with put().
            meets = target.key not in expected and self._meeting.concerns(target, value)
            if meets or isinstance(value, Merging | Clocked):
                raise RejectedError(
                    f"a batch writes plain values over plain ones; {target.key!r} merges, or has a resolver",
                    key=target.key, hint="use update() or merge(), key by key",
                )  # fmt: skip

    async def _insist(self, batch: _Batch, backoff: Backoff) -> int:
        """Send until it is stored or refused for good; the sequence of the first member."""
        core = self._core
        while True:
            try:
                async with self._open:
                    return await self._attempt(batch, backoff)
            except NoBatches as error:
                self._able = 0
                raise _unable(core.link.server_version, core.stream.name) from error
            except WrongSequence:
                words = "others were faster at keys of this batch until the deadline"
                await backoff.pause(ConflictError(words, hint="read them and decide again"))
            except AnswerLost as error:
                return await self._settle(batch, backoff, error)
            except UnavailableError as error:
                core.stir()  # the bucket may be gone
                await backoff.pause(error)

    async def _attempt(self, batch: _Batch, backoff: Backoff) -> int:
        core = self._core
        generation = core.link.generation
        bases = await batch.look(backoff)
        if any(base.generation != generation for base in bases.values()):
            raise NotSent("reconnected while the keys of a batch were read", tier="DISTRIBUTED_KV")
        if self._able != generation:
            await self._demand_able(backoff)
        members = [
            Member(
                target.wire, header_lines(content, batch.operation, core.format), content.body,
                bases[target.subject].held.sequence if target.subject in bases else None,
            )
            for target, content in zip(batch.targets, batch.contents, strict=True)
        ]  # fmt: skip
        self._attempts += 1
        name = f"{batch.operation}.{self._attempts:x}"
        return await publish_batch(core.stream, name, members, core.attempt_ms(backoff), generation=generation)

    async def _bases(
        self, wanted: Sequence[Target], expected: Mapping[str, Version | None], backoff: Backoff
    ) -> dict[str, Base]:
        """What the keys with a condition hold.

        Raises:
            ConflictError: a condition does not hold.
        """
        found: list[Base] = []
        for start in range(0, len(wanted), _SIDE_BY_SIDE):
            reads = [self._writer.base(target, backoff) for target in wanted[start : start + _SIDE_BY_SIDE]]
            found += await side_by_side(reads)
        bases = {target.key: base for target, base in zip(wanted, found, strict=True)}
        stale = [key for key, base in bases.items() if _version(base) != expected[key]]
        if stale:
            raise _conflict(stale, expected, bases)
        return {target.subject: base for target, base in zip(wanted, found, strict=True)}

    async def _placed(self, targets: Sequence[Target], whole: Sequence[Content]) -> list[Content]:
        """Large values go to SQL before the first member is sent (flow rule 20)."""
        placed: list[tuple[Content, Placed | None]] = await side_by_side(
            [self._writer.placed(target, content) for target, content in zip(targets, whole, strict=True)]
        )
        return [content for content, _ in placed]

    async def _demand_able(self, backoff: Backoff) -> None:
        """The stream takes batches, by its own word over this connection. An older server would pass over the headers
        and store the members one by one."""
        link = self._core.link
        while True:
            try:
                generation = link.generation
                with reading():
                    info = await self._core.stream.info(int(backoff.left_ms))
                break
            except UnavailableError as error:
                await backoff.pause(error)
        if link.server_version < ATOMIC_SINCE or not info.config.get("allow_atomic"):
            raise _unable(link.server_version, self._core.stream.name)
        self._able = generation

    async def _settle(self, batch: _Batch, backoff: Backoff, cause: AnswerLost) -> int:
        """After a lost answer: the first member's sequence, by the members that the leader still holds.

        A server that is killed while it stores a batch may keep its beginning only. So everything behind the last
        member that is there must have been overwritten: then it is as if all had been stored.
        """
        held = await self._held(batch, backoff, cause)
        ours = [at for at, stored in enumerate(held) if stored is not None and stored.op == batch.operation]
        if not ours:
            raise _unknown(batch) from cause
        last = held[ours[-1]]
        assert last is not None
        if any(stored is None or stored.sequence < last.sequence for stored in held[ours[-1] + 1 :]):
            raise _unknown(batch, "NATS ended while it stored it, and kept only a part") from cause
        return last.sequence - ours[-1]

    async def _held(self, batch: _Batch, backoff: Backoff, cause: AnswerLost) -> list[Stored | None]:
        """The leader's entries of all members."""
        core = self._core
        held: list[Stored | None] = []
        while len(held) < len(batch.targets):
            some = batch.targets[len(held) : len(held) + _SIDE_BY_SIDE]
            try:
                held += await side_by_side([core.leader(target, core.attempt_ms(backoff)) for target in some])
            except (UnavailableError, AnswerLost) as error:
                try:
                    await backoff.pause(UnavailableError(str(error)))
                except UnavailableError:
                    raise _unknown(batch) from cause
        return held


async def side_by_side(works: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """All results; the first error, once none of them runs any more."""
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return cast("list[_T]", outcomes)


def _unable(server: tuple[int, ...], stream: str) -> RejectedError:
    have, need = (".".join(map(str, version)) for version in (server, ATOMIC_SINCE))
    if server < ATOMIC_SINCE:
        return RejectedError(
            f"atomic=True needs nats-server {need} or newer; this one is {have}", tier="DISTRIBUTED_KV",
            hint="upgrade NATS, or write the keys without atomic=True",
        )  # fmt: skip
    return RejectedError(
        f"stream {stream} takes no atomic batches: it was made by a nats-server older than {need}; now it is {have}",
        tier="DISTRIBUTED_KV", hint=f"allow them: nats stream edit {stream} --allow-batch",
    )  # fmt: skip


def _conflict(stale: Sequence[str], expected: Mapping[str, Version | None], bases: Mapping[str, Base]) -> ConflictError:
    words = [f"{key!r} should be {_at(expected[key])} but is {_at(_version(bases[key]))}" for key in stale]
    more = f" and {len(stale) - _NAMED_MAX} more" if len(stale) > _NAMED_MAX else ""
    return ConflictError(
        f"nothing was written: {'; '.join(words[:_NAMED_MAX])}{more}", key=stale[0], hint="read them and decide again"
    )


def _at(version: Version | None) -> str:
    return "absent" if version is None else f"at version {version}"


def _version(base: Base) -> Version | None:
    return None if base.stored is None else base.stored.version


def _unknown(batch: _Batch, why: str = "all of it may have happened, or nothing") -> OutcomeUnknownError:
    keys = [target.key for target in batch.targets]
    return OutcomeUnknownError(
        f"the answer to a batch of {len(keys)} keys was lost: {why}", key=keys[0], tier="DISTRIBUTED_KV",
        hint="read the keys before you write them again",
    )  # fmt: skip
