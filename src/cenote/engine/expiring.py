"""Entries that die of age, in a bucket of their own: the ground that sessions and cached answers stand on.

An entry carries the server time at which it is over, and is judged by that; the server removes it some time later
(`Nats-TTL`, ADR-43), so that "it has expired" can still be told from "there is none". The stream itself has no
`max_age`: that would end every entry's life, however long its own is to be.
"""

import math
from typing import Any, NamedTuple

from cenote.engine.core import Core, reading
from cenote.errors import CodecError, OutcomeUnknownError, UnavailableError
from cenote.kv.bucket import ensure_expiring
from cenote.kv.errors import AnswerLost
from cenote.kv.message import Message, header_value
from cenote.kv.stream import StateStream, sequence_of
from cenote.model import entry
from cenote.model import key as keys
from cenote.retry import Backoff

_DELETED = b"KV-Operation: DEL\r\n"
_MARKER = b"Nats-Marker-Reason: "
_DELETED_KEPT_S = 60  # a deleted entry's place is kept so long: whoever read it before sees that it has changed


class Kept(NamedTuple):
    """One entry. `sequence` is its place in the stream; a deleted one, or what the server left of one that died of age,
    has a place but no codec."""

    sequence: int
    codec: str
    body: bytes
    written_us: int
    expires_ms: int
    op: str

    @property
    def gone(self) -> bool:
        """Whether nothing is there but a place."""
        return self.codec == ""


class Expiring:
    """Reads and writes one such bucket, which is made when it is used first."""

    def __init__(self, core: Core, bucket: str, *, discard: str, tells: bool = False) -> None:
        """discard: "new" refuses writes when the bucket is full, "old" lets the oldest entries go. tells: each write is
        announced under `told`, without its body."""
        self._core = core
        self._stream = StateStream(core.link, core.names, timeout_ms=core.config.kv.request_timeout_ms, bucket=bucket)
        self._bucket = bucket
        self._settings: dict[str, Any] = {"discard": discard}
        self.told = core.names.republished(bucket)
        if tells:
            republish = {"src": self._stream.prefix + ">", "dest": self.told + ">", "headers_only": True}
            self._settings["republish"] = republish
        self._ready = -1
        self._writes = 0

    def subject(self, key: str, mark: str = "") -> str:
        """The subject of a key's entry; mark: of one that belongs to it, "=" and a word that is no escape."""
        return keys.check_subject(f"{self._stream.prefix}{mark}{keys.encode_key(key)}")

    def told_of(self, announced: str) -> str:
        """The subject of the entry whose write was announced."""
        return self._stream.prefix + announced.removeprefix(self.told)

    def key(self, subject: str, mark: str = "") -> str | None:
        """The key behind a subject with this mark; None where there is none."""
        token = subject.removeprefix(self._stream.prefix)
        try:
            return keys.decode_token(token.removeprefix(mark)) if token.startswith(mark) else None
        except CodecError:
            return None

    async def ready(self) -> None:
        """Make the bucket, or see that it is as it must be; once for each connection. Raises SetupError."""
        core = self._core
        core.stream.demand_ours()
        if self._ready != (generation := core.link.generation):
            await ensure_expiring(core.link, core.names, self._bucket, core.config.kv, self._settings)
            self._ready = generation

    async def read(self, subject: str) -> Kept | None:
        """The entry at the subject: in a cluster as the leader has it. Raises UnavailableError, CodecError."""
        await self.ready()
        with reading():
            if self._core.replicas is None:
                message = await self._stream.get(subject.encode("ascii"))
            else:
                message = await self._stream.leader_get(subject)
        return None if message is None else _kept(message)

    async def write(
        self,
        subject: str,
        codec: str,
        body: bytes,
        *,
        expires_ms: int,
        keep_ms: int,
        over: int | None,
        backoff: Backoff,
    ) -> Kept:
        """Store an entry that is over at `expires_ms` and removed `keep_ms` later.

        over: the sequence that it must take the place of (0: there is none); None: whatever there is.

        Raises:
            WrongSequence: another one is there.
            BackpressureError: the bucket is full. UnavailableError: nothing was written before the deadline.
            OutcomeUnknownError: the answer was lost, and something else is there now.
        """
        op = self._operation()
        ttl_s = max(1, math.ceil((expires_ms + keep_ms - self._core.now_ms()) / 1000))
        header = entry.header(codec, op, expires_ms) + b"Nats-TTL: %ds\r\n" % ttl_s
        sequence = await self._publish(subject, header, body, op, over, backoff)
        return Kept(sequence, codec, body, self._core.now_ms() * 1000, expires_ms, op)

    async def delete(self, subject: str, *, over: int | None, backoff: Backoff) -> None:
        """Remove the entry. Raises as `write`."""
        op = self._operation()
        header = entry.header("", op) + _DELETED + b"Nats-TTL: %ds\r\n" % _DELETED_KEPT_S
        await self._publish(subject, header, b"", op, over, backoff)

    async def page(self, after: int, count: int, mark: str = "") -> tuple[list[tuple[str, Kept]], bool]:
        """Live entries with a mark by key, behind a sequence, in the order of writing; whether there are more."""
        await self.ready()
        found: list[tuple[str, Kept]] = []
        with reading():
            async for message in self._stream.live(from_sequence=after + 1):
                key, kept = self.key(message.subject, mark), _kept(message)
                if key is None or kept.gone or kept.expires_ms <= self._core.now_ms():
                    continue
                if len(found) == count:
                    return found, True
                found.append((key, kept))
        return found, False

    async def _publish(
        self, subject: str, header: bytes, body: bytes, op: str, over: int | None, backoff: Backoff
    ) -> int:
        """Flow rule 16: sent again only after a proof that nothing was stored."""
        wire = subject.encode("ascii")
        while True:
            try:
                await self.ready()
                answer = self._stream.publish_nowait(wire, header, body, self._core.attempt_ms(backoff), over)
                return sequence_of(await answer)
            except AnswerLost as error:
                return await self._settled(subject, op, error)
            except UnavailableError as error:
                await backoff.pause(error)

    async def _settled(self, subject: str, op: str, lost: AnswerLost) -> int:
        """The sequence of our own write, if the leader shows it."""
        try:
            message = await self._stream.leader_get(subject)
        except (UnavailableError, OutcomeUnknownError):
            raise lost from None
        if message is not None and _kept(message).op == op:
            return message.sequence
        raise OutcomeUnknownError(
            "the answer to a write was lost; it may or may not have happened", tier="DISTRIBUTED_KV",
            hint="read it, and decide again",
        ) from lost  # fmt: skip

    def _operation(self) -> str:
        self._writes += 1
        return f"{self._core.writer_id}-x.{self._writes:x}"


def _kept(message: Message) -> Kept:
    if message.header.find(_MARKER) >= 0:
        return Kept(message.sequence, "", b"", message.time_us, 0, "")
    line = header_value(message.header, b"Cenote: ")
    if line is None:
        raise CodecError(f"{message.subject} was not written by cenote: it has no envelope")
    envelope = entry.parse(line)
    codec = "" if message.header.find(_DELETED) >= 0 else envelope.codec
    return Kept(message.sequence, codec, message.payload, message.time_us, envelope.expires_ms or 0, envelope.op)
