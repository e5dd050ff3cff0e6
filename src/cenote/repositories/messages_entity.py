"""A message as users know it, what they may send, and how both stand in SQL."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NotRequired, TypedDict
from uuid import UUID

from cenote import limits
from cenote.errors import RejectedError
from cenote.model import key as keys
from cenote.model.canonical import canonical
from cenote.model.entry import from_us
from cenote.model.page import Cursors
from cenote.model.uuid7 import uuid7
from cenote.sql.jsonb import decoded, encoded
from cenote.sql.messages import MessageRow, NewRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Something that was said.

    Attributes:
        id: what names it; sending it again under the same id changes nothing.
        sender, to: who said it, and to whom.
        conversation: what it belongs to, or None.
        body: the value that was sent.
        metadata: what was said about it.
        reply_to: the id of the message that it answers, or None.
        sent_at: when the store took it, by PostgreSQL's clock, UTC; no two messages have the same, and it is their
            order. None: it was sent within a transaction, and has its place from the commit on.
        position: give it to `since` or `cursor` to go on after this message; None as above.
    """

    id: UUID
    sender: str
    to: str
    conversation: str | None
    body: Any
    metadata: dict[str, Any]
    reply_to: UUID | None
    sent_at: datetime | None
    position: str | None


class NewMessage(TypedDict):
    """One of `send_many`: what `send` takes."""

    body: object
    sender: str | UUID
    to: str | UUID
    conversation: NotRequired[str | UUID | None]
    message_id: NotRequired[UUID | None]
    reply_to: NotRequired[UUID | None]
    metadata: NotRequired[Mapping[str, object] | None]


_NEEDED: Final = NewMessage.__required_keys__
_GIVEN: Final = _NEEDED | NewMessage.__optional_keys__


def outgoing(given: object) -> NewRow:
    """The row of a message to be sent. RejectedError names the field, and its limit."""
    if not isinstance(given, Mapping):
        raise RejectedError(f"a mapping with the fields of a message is needed, not {type(given).__name__}")
    for field in sorted(_NEEDED - given.keys()):
        raise RejectedError(f"{field}: it is missing; a message has {', '.join(sorted(_NEEDED))}")
    for field in sorted(given.keys() - _GIVEN, key=str):
        raise RejectedError(f"{field!r}: a message has no such field; it may have {', '.join(sorted(_GIVEN))}")
    conversation = given.get("conversation")
    sender, to = name(given["sender"], "sender"), name(given["to"], "to")
    message_id, reply_to = identity(given.get("message_id"), "message_id"), identity(given.get("reply_to"), "reply_to")
    body = encoded(given["body"], what="body", bytes_max=limits.MESSAGE_BYTES_MAX)
    about = _metadata(given.get("metadata"))
    return NewRow(
        message_id or uuid7(), _bytes(*body) + _bytes(*about), reply_to, keys.sql_key(sender), keys.sql_key(to),
        None if conversation is None else keys.sql_key(name(conversation, "conversation")), *body, *about,
    )  # fmt: skip


def message(row: MessageRow | NewRow, cursors: Cursors, ts_us: int | None) -> Message:
    """A message as it stands in SQL, or as it will. CodecError when it cannot be read."""
    return Message(
        id=row.message_id,
        sender=keys.from_sql_key(row.sender),
        to=keys.from_sql_key(row.recipient),
        conversation=None if row.conversation is None else keys.from_sql_key(row.conversation),
        body=decoded(row.body, row.raw),
        metadata={} if row.metadata is None and row.metadata_raw is None else decoded(row.metadata, row.metadata_raw),
        reply_to=row.reply_to,
        sent_at=None if ts_us is None else from_us(ts_us),
        position=None if ts_us is None else cursors.write(ts_us),
    )


def same(one: Message, other: Message) -> bool:
    """Whether both say the same, wherever they stand."""
    return _content(one) == _content(other)


def name(given: object, what: str) -> str:
    """A sender, recipient or conversation. RejectedError names the limit."""
    if isinstance(given, UUID):
        return str(given)
    if not isinstance(given, str):
        raise RejectedError(f"{what}: a str or a UUID is needed, not {type(given).__name__}")
    if not 0 < len(given) <= limits.AGENT_CHARS_MAX:
        raise RejectedError(f"{what}: {len(given)} characters; 1 to {limits.AGENT_CHARS_MAX} are allowed")
    return str.__str__(given)


def identity(given: object, what: str) -> UUID | None:
    """An id, or None where there is none."""
    if given is not None and not isinstance(given, UUID):
        raise RejectedError(f"{what}: a UUID is needed, not {type(given).__name__}")
    return given


def _metadata(given: object) -> tuple[str | None, bytes | None]:
    if given is None or given == {}:
        return None, None
    if not isinstance(given, Mapping):
        raise RejectedError(f"metadata: a mapping is needed, not {type(given).__name__}")
    return encoded(dict(given), what="metadata", bytes_max=limits.MESSAGE_METADATA_BYTES_MAX)


def _bytes(text: str | None, raw: bytes | None) -> int:
    if raw is not None:
        return len(raw)
    return 0 if text is None else len(text.encode())


def _content(one: Message) -> tuple[object, ...]:
    return one.sender, one.to, one.conversation, one.reply_to, canonical(one.body), canonical(one.metadata)
