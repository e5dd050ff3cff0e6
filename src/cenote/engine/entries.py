"""What each tier holds of one key, in one shape: KV message ↔ `Stored` ↔ SQL row."""

import json
from typing import NamedTuple

from cenote import limits
from cenote.engine.epoch import Epochs
from cenote.errors import CodecError, ConsistencyError
from cenote.kv.message import Message, header_value
from cenote.model import entry, key, value
from cenote.model.entry import Stored, Version
from cenote.sql.rows import Row

TOMBSTONE = b"KV-Operation: DEL\r\n"
_DELETED = b"KV-Operation: DEL"
_NAME = b"Cenote: "
BLOB = "b"
"""The codec of a reference to a blob (flow rule 20); the reference names the codec of the bytes."""
_BLOB_MARK = b"\0"  # begins `raw` of a reference's row; no JSON text begins so
NO_VALUE = "j"
"""The codec that a tombstone states; there is no body to decode."""
UNREADABLE = "?"
"""The codec given to an entry whose envelope is not ours, or of a newer format."""
ABSENT = Stored(Version(0, 0), 0, NO_VALUE, b"", True, 0, None, True, 0, "")
"""What no tier has ever held: older than every write."""


class Target(NamedTuple):
    """One key of one agent, in every spelling the tiers need."""

    agent: key.AgentRef
    key: str
    subject: str
    wire: bytes
    row_key: str


def from_message(message: Message, epochs: Epochs) -> Stored:
    """Decode the envelope of a KV message.

    Raises:
        CodecError: the message carries no envelope of ours, or one of a newer format.
    """
    line = header_value(message.header, _NAME)
    if line is None:
        raise CodecError(f"{message.subject} was not written by cenote: it has no envelope")
    envelope = entry.parse(line)
    clean = envelope.clean
    deleted = message.header.find(_DELETED) >= 0  # `in` would try its left side as an int first
    if clean is None:
        version = Version(epochs.at(message.time_us), message.sequence)
        return Stored(
            version, message.sequence, envelope.codec, message.payload, deleted, message.time_us,
            envelope.expires_ms, False, 0, envelope.op,
        )  # fmt: skip
    version = Version(clean.epoch, clean.revision)
    return Stored(
        version, message.sequence, envelope.codec, message.payload, deleted, clean.written_us,
        envelope.expires_ms, True, clean.t0_ms, envelope.op,
    )  # fmt: skip


def listed(message: Message, epochs: Epochs) -> Stored:
    """The same for who looks at many entries: an unreadable one must not hide the others (I13). Its codec is unknown,
    so that whoever wants its value gets the CodecError."""
    try:
        return from_message(message, epochs)
    except CodecError:
        version = Version(epochs.at(message.time_us), message.sequence)
        return Stored(
            version, message.sequence, UNREADABLE, message.payload, False, message.time_us, None, False, 0, ""
        )  # fmt: skip


def version_of(message: Message, epochs: Epochs) -> Version:
    """The version that `listed` finds, for who looks at very many entries: only that of a copy is taken apart."""
    line = header_value(message.header, _NAME)
    if line is None or line.endswith(b";"):  # no mark of a copy
        return Version(epochs.at(message.time_us), message.sequence)
    return listed(message, epochs).version


def believed(stored: Stored, message: Message) -> bool:
    """Whether a KV entry may be believed: a clean copy whose hydration took the minimum eviction age or longer may
    hide a newer write that came, was flushed and was evicted meanwhile (I10; flow F-t0)."""
    return not stored.clean or message.time_us // 1000 - stored.t0_ms < limits.EVICT_AGE_MIN_MS


def nobody(stored: Stored) -> bool:
    """Whether this is the mark of a key that no tier had: something to write over (F-mark), and no answer for a reader,
    for the agent may have begun as a fork since SQL was asked (decision 0010)."""
    return stored.clean and stored.version == ABSENT.version


def from_row(row: Row) -> Stored:
    """Decode a row of `agents.state`; `sequence` is 0, as SQL cannot know where KV holds a copy."""
    codec, body = (NO_VALUE, b"") if row.deleted else _body(row)
    if len(body) >= limits.COMPRESS_BYTES_MIN:
        codec, body = value.pack(codec, body)  # jsonb's text is never compressed; KV could not carry it back
    expires_ms = None if row.expires_us is None else row.expires_us // 1000
    return Stored(Version(row.epoch, row.version), 0, codec, body, row.deleted, row.kv_time_us, expires_ms, True, 0, "")


def _body(row: Row) -> tuple[str, bytes]:
    if row.raw is not None and row.raw.startswith(_BLOB_MARK):
        return BLOB, row.raw[1:]
    return value.from_sql(row.value, row.raw)


def to_row(target_id: key.AgentRef, row_key: str, stored: Stored) -> Row:
    """What the flusher commits for one entry.

    Raises:
        CodecError: the body is not what its codec says; the caller quarantines it.
    """
    text: str | None = None
    raw: bytes | None = None
    if stored.codec == BLOB and not stored.deleted:
        text, raw = f'{{"$blob":{stored.body.decode()}}}', _BLOB_MARK + stored.body
    elif not stored.deleted:
        try:
            text, raw = value.json_text(stored.codec, stored.body)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CodecError(f"the body of {row_key!r} is not JSON") from error
    return Row(
        target_id.id, row_key, text, raw, stored.version.revision, stored.version.epoch, stored.written_us,
        stored.deleted, False, None if stored.expires_ms is None else stored.expires_ms * 1000,
    )  # fmt: skip


def gone(stored: Stored, now_ms: int) -> bool:
    """Whether a read must treat this as absent: deleted, or expired by the server's clock (flow rule 21)."""
    return stored.deleted or (stored.expires_ms is not None and stored.expires_ms <= now_ms)


def clean_header(stored: Stored, t0_ms: int, op: str, form: int) -> bytes:
    """The header lines of a clean copy of `stored` (I10)."""
    mark = entry.Clean(stored.version.epoch, stored.version.revision, stored.written_us, t0_ms)
    lines = entry.header(stored.codec, op, stored.expires_ms, mark, form=form)
    return lines + TOMBSTONE if stored.deleted else lines


def exact(row: Row) -> Row:
    """A row that PostgreSQL refused, as the exact bytes without a projection, to be quarantined (flow rule 14).

    Raises:
        ConsistencyError: there are no bytes, for it is a tombstone; nothing about it could be refused but its key.
    """
    raw = row.raw
    if raw is None and row.value is not None:
        raw = row.value.encode("utf-8", "surrogatepass")
    if raw is None:
        raise ConsistencyError(f"I13: PostgreSQL refuses even the tombstone of {row.key!r}")
    return row._replace(value=None, raw=raw, quarantined=True)
