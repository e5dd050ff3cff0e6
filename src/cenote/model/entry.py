"""What flows between the tiers: versions, the envelope in one header line, and entries.

The envelope rides in one NATS header line beside the body, so that the body stays the value's own bytes and
the flusher decodes none of them (I17):

    Cenote: 1;<codec>;<op>;<expires_ms>;<epoch.revision.written_us.t0_ms>

The last field is there for clean copies only: from SQL, never flushed back (I10, flow rules 6 and 7). A
version is the stream sequence of the original write, under its epoch; a clean copy keeps it.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final, Literal, NamedTuple

import msgspec

from cenote import limits
from cenote.errors import CodecError, RejectedError
from cenote.model import value as values

FORMAT: Final = 1  # the newest that this code reads and writes; what it writes the store decides (flow rule 22)
_NAME: Final = b"Cenote: "
_HEADS: Final = {number: b"Cenote: %d;" % number for number in range(1, FORMAT + 1)}
_READ: Final = {str(number) for number in _HEADS}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Change = Literal["put", "delete", "expiry"]


class UnknownFormat(CodecError):
    """An envelope of a later format: left alone and offered again, never dead-lettered (flow rule 22)."""


class Version(NamedTuple):
    """When a value was written: ordered, opaque; `str()` and `Version.parse` are each other's inverse."""

    epoch: int
    revision: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.revision}"

    @classmethod
    def parse(cls, text: str) -> "Version":
        """The version behind its text; RejectedError when it is none."""
        epoch, dot, revision = text.partition(".")
        if dot and epoch.isdecimal() and revision.isdecimal() and text.isascii() and len(text) <= 40:
            version = cls(int(epoch), int(revision))
            if str(version) == text:
                return version
        raise RejectedError(f"version: {text[:60]!r} is no version; they look like '1.42'")


class Clean(NamedTuple):
    """The mark of a clean copy: the original version and time, a server time before the hydrator's read."""

    epoch: int
    revision: int
    written_us: int
    t0_ms: int


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """What a header line says about its entry."""

    codec: str
    op: str
    expires_ms: int | None
    clean: Clean | None


class Stored(msgspec.Struct, frozen=True, gc=False):
    """One entry as a tier holds it; `sequence` is its place in the stream, 0 when SQL answered.

    A Struct, as all that is made anew for each write, is built in a fifth of a NamedTuple's time.
    """

    version: Version
    sequence: int
    codec: str
    body: bytes
    deleted: bool
    written_us: int
    expires_ms: int | None
    clean: bool
    t0_ms: int
    op: str

    def expired(self, now_ms: int) -> bool:
        """Whether its time is over at the server time `now_ms`: then it counts as a tombstone (rule 21)."""
        return self.expires_ms is not None and self.expires_ms <= now_ms


class Tier(Enum):
    """Where an answer came from."""

    MEMORY_CACHE = "MEMORY_CACHE"
    DISTRIBUTED_KV = "DISTRIBUTED_KV"
    RELATIONAL_DB = "RELATIONAL_DB"
    VECTOR_STORE = "VECTOR_STORE"


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's value with its circumstances.

    Attributes:
        key, agent: whose entry it is.
        value: decoded, the caller's own copy; None for a delete or an expiry.
        version: of the write; give it to `if_version`.
        written_at: the KV server's time of the write, UTC.
        expires_at: when it will be gone, UTC, or None.
        tier: which tier answered.
        writer: the process that wrote it.
        change: "put", "delete" or "expiry"; the latter two come from watches only.
        stale: whether it may be older than the staleness bound, because KV could not be asked.
    """

    key: str
    value: Any
    version: Version
    written_at: datetime
    expires_at: datetime | None
    tier: Tier
    writer: str
    agent: str
    change: Change = "put"
    stale: bool = False

    @classmethod
    def of(
        cls,
        stored: Stored,
        *,
        agent: str,
        key: str,
        tier: Tier,
        change: Change | None = None,
        stale: bool = False,
        into: type | None = None,
    ) -> "Entry":
        """The entry for the user, its value decoded (`into` a class, if given); CodecError if it cannot."""
        if change is None:
            change = "delete" if stored.deleted else "put"
        value = None
        if change == "put":
            value = values.decode(stored.codec, stored.body)
            if into is not None:
                value = values.decode_into(value, into)
        expires_at = None if stored.expires_ms is None else from_ms(stored.expires_ms)
        written_at = from_us(stored.written_us)
        return cls(key, value, stored.version, written_at, expires_at, tier, writer(stored.op), agent, change, stale)


def header(codec: str, op: str, expires_ms: int | None = None, clean: Clean | None = None, *, form: int = 1) -> bytes:
    """The envelope as one header line, CRLF included. `op` is `<writer>.<counter>` in URL-safe characters; `form` is a
    format that every process of the store reads."""
    expires = "" if expires_ms is None else expires_ms
    if clean is None:
        return _HEADS[form] + f"{codec};{op};{expires};\r\n".encode()
    return _HEADS[form] + f"{codec};{op};{expires};{'.'.join(map(str, clean))}\r\n".encode()


def parse(line: bytes) -> Envelope:
    """The envelope in a header line as `header` made it, with or without name and CRLF.

    Raises:
        UnknownFormat: it is of another format than ours.
        CodecError: it is no envelope.
    """
    try:
        number, codec, op, expires, mark = line.removeprefix(_NAME).decode().split(";")
        if number in _READ:
            mark = mark.rstrip("\r\n")
            return Envelope(codec, op, int(expires) if expires else None, _clean(mark) if mark else None)
    except ValueError:
        pass  # too many or too few fields, or no numbers: told apart below
    raise _unreadable(line)


def _clean(mark: str) -> Clean:
    epoch, revision, written_us, t0_ms = mark.split(".")
    return Clean(int(epoch), int(revision), int(written_us), int(t0_ms))


def _unreadable(line: bytes) -> CodecError:
    number = line.removeprefix(_NAME).partition(b";")[0]
    if number.isdigit() and number.decode() not in _READ:
        return UnknownFormat(
            f"an entry of format {number[:20].decode()}; this cenote reads formats up to {FORMAT}",
            hint="upgrade this process: pip install --upgrade cenote",
        )
    error = CodecError(f"header line {line[:120]!r} is no envelope")
    error.raw = line
    return error


def writer(op: str) -> str:
    """The writer's id within an operation id `<writer>.<counter>`."""
    return op.rpartition(".")[0]


def from_us(us: int) -> datetime:
    """Microseconds since 1970 as an aware time in UTC, exactly."""
    return _EPOCH + timedelta(microseconds=us)


def from_ms(ms: int) -> datetime:
    """Milliseconds since 1970 as an aware time in UTC, exactly."""
    return _EPOCH + timedelta(milliseconds=ms)


def to_us(at: datetime) -> int:
    """An aware time as microseconds since 1970, exactly."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def ttl_ms(ttl: timedelta | None) -> int | None:
    """A time to live in whole milliseconds; RejectedError unless 1 ms to a century."""
    if ttl is None:
        return None
    if not isinstance(ttl, timedelta):
        raise RejectedError(f"ttl: a timedelta is needed, not {type(ttl).__name__}")
    ms = ttl // timedelta(milliseconds=1)
    if not 0 < ms <= limits.TTL_S_MAX * 1000:
        raise RejectedError(f"ttl: {ttl} is not between 1 ms and {limits.TTL_S_MAX // 86_400} days")
    return ms
