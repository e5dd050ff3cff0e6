"""A fact as users know it, what they may add, and how both stand in SQL."""

import math
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NotRequired, TypedDict
from uuid import UUID

from cenote import limits
from cenote.errors import AlreadyExistsError, OutcomeUnknownError, RejectedError
from cenote.model import key as keys
from cenote.model.canonical import canonical
from cenote.model.entry import from_us
from cenote.model.uuid7 import uuid7
from cenote.sql.jsonb import decoded, encoded
from cenote.sql.knowledge import FactRow
from cenote.sql.knowledge import NewFact as NewRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that is known.

    Attributes:
        id: what names it; adding it again under the same id changes nothing.
        text: what is known, in words.
        namespace: searches look into one of them.
        metadata: what is said about it; filters look here.
        created_at: when it was added, by PostgreSQL's clock, UTC.
        superseded_by: the id of the fact that took its place, or None.
        embedded: whether it has an embedding; without one it is found by its words alone.
        version: grows with every save; `update` compares it.
    """

    text: str
    namespace: str = "default"
    metadata: dict[str, Any] = field(default_factory=dict)
    id: UUID = field(default_factory=uuid7)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    superseded_by: UUID | None = None
    embedded: bool = False
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A fact that a search found.

    Attributes:
        fact: the fact.
        score: higher is better; by vector the cosine, by text PostgreSQL's rank, hybrid the fused rank. Scores of two
            modes are not to be compared.
    """

    fact: Fact
    score: float


class NewFact(TypedDict):
    """One of `add_many`: what `add` takes."""

    text: str
    metadata: NotRequired[Mapping[str, object] | None]
    namespace: NotRequired[str]
    embedding: NotRequired[Sequence[float] | None]
    fact_id: NotRequired[UUID | None]


_GIVEN: Final = NewFact.__required_keys__ | NewFact.__optional_keys__


def outgoing(given: object) -> NewRow:
    """The row of a fact to be added. RejectedError names the field, and its limit."""
    if not isinstance(given, Mapping):
        raise RejectedError(f"a mapping with the fields of a fact is needed, not {type(given).__name__}")
    if "text" not in given:
        raise RejectedError("text: it is missing")
    for name in sorted(given.keys() - _GIVEN, key=str):
        raise RejectedError(f"{name!r}: a fact has no such field; it may have {', '.join(sorted(_GIVEN))}")
    fact_id, embedding = given.get("fact_id"), given.get("embedding")
    return NewRow(
        uuid7() if fact_id is None else identity(fact_id),
        namespace(given.get("namespace", "default")),
        _text(given["text"]),
        *_metadata(given.get("metadata")),
        None if embedding is None else unit(embedding),
    )


def checked_rows(given: Sequence[NewFact]) -> list[NewRow]:
    """The rows of facts to be added. RejectedError names the fact, the field and its limit."""
    if len(given) > limits.FACTS_BATCH_COUNT_MAX:
        raise RejectedError(f"facts: {len(given)} of them; up to {limits.FACTS_BATCH_COUNT_MAX} are taken")
    rows: list[NewRow] = []
    for number, one in enumerate(given):
        try:
            rows.append(outgoing(one))
        except RejectedError as error:
            if len(given) > 1:
                error.args = (f"facts[{number}].{error.args[0]}",)
            raise
    if len({row.fact_id for row in rows}) < len(rows):
        raise RejectedError("facts: two of them have the same fact_id")
    size = sum(len(row.text) + len(row.metadata or "") + len(row.embedding or b"") for row in rows)
    if size > limits.FACTS_BATCH_BYTES_MAX:
        raise RejectedError(f"facts: {size} bytes; up to {limits.FACTS_BATCH_BYTES_MAX} are taken together")
    return rows


def whole(given: object) -> NewRow:
    """The row of a fact to be saved."""
    if not isinstance(given, Fact):
        raise RejectedError(f"entity: a Fact is needed, not {type(given).__name__}")
    return outgoing({"text": given.text, "metadata": given.metadata, "namespace": given.namespace, "fact_id": given.id})


def settled(row: NewRow, stored: FactRow | None) -> Fact:
    """What stands under the id of a fact that was there already. AlreadyExistsError when it is another."""
    if stored is None:
        raise OutcomeUnknownError(
            f"fact_id {row.fact_id}: it was there already, and has been removed meanwhile", tier="RELATIONAL_DB"
        )
    found = fact(stored)
    if not same(found, fact(fresh(row, stored.created_us))):
        raise AlreadyExistsError(
            f"fact_id {row.fact_id}: another fact has it", tier="RELATIONAL_DB",
            hint="an id names one fact: add this one under an id of its own",
        )  # fmt: skip
    return found


def fact(row: FactRow) -> Fact:
    """A fact as it stands in SQL. CodecError when it cannot be read."""
    return Fact(
        id=row.fact_id,
        text=keys.from_sql_key(row.text),
        namespace=keys.from_sql_key(row.namespace),
        metadata=decoded(row.metadata, row.raw),
        created_at=from_us(row.created_us),
        superseded_by=row.superseded_by,
        embedded=row.embedded,
        version=row.version,
    )


def fresh(row: NewRow, created_us: int) -> FactRow:
    """The row that stands in SQL once this one has been added."""
    embedded = row.embedding is not None
    return FactRow(
        row.fact_id, row.namespace, row.text, row.metadata or "{}", row.raw, embedded, 1, created_us, None
    )  # fmt: skip


def same(one: Fact, other: Fact) -> bool:
    """Whether both say the same."""
    return _content(one) == _content(other)


def identity(given: object, what: str = "fact_id") -> UUID:
    """An id."""
    if not isinstance(given, UUID):
        raise RejectedError(f"{what}: a UUID is needed, not {type(given).__name__}")
    return given


def namespace(given: object) -> str:
    """A namespace as SQL has it. RejectedError names the limit."""
    if not isinstance(given, str):
        raise RejectedError(f"namespace: a str is needed, not {type(given).__name__}")
    if not 0 < len(given) <= limits.AGENT_CHARS_MAX:
        raise RejectedError(f"namespace: {len(given)} characters; 1 to {limits.AGENT_CHARS_MAX} are allowed")
    return keys.sql_key(str.__str__(given))


def unit(given: object, what: str = "embedding") -> bytes:
    """An embedding as float32 of length 1. RejectedError for what has no direction."""
    try:
        numbers = array("d", given)  # type: ignore[call-overload]  # whatever somebody gave; see below
    except (TypeError, ValueError, OverflowError):
        raise RejectedError(f"{what}: a sequence of numbers is needed") from None
    if isinstance(given, bytes | bytearray) or not 0 < len(numbers) <= limits.FACT_DIMENSIONS_MAX:
        raise RejectedError(f"{what}: {len(numbers)} numbers; 1 to {limits.FACT_DIMENSIONS_MAX} are allowed")
    length = math.hypot(*numbers)
    if not math.isfinite(length) or length == 0:
        raise RejectedError(f"{what}: it has no direction: all of it is 0, or something is not finite")
    return float32(array("f", (number / length for number in numbers)))


def float32(numbers: "array[float]") -> bytes:
    """As SQL keeps them: little-endian."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def numbers(stored: bytes) -> "array[float]":
    """What `float32` made."""
    found = array("f", stored)
    if sys.byteorder == "big":
        found.byteswap()
    return found


def _text(given: object) -> str:
    if not isinstance(given, str):
        raise RejectedError(f"text: a str is needed, not {type(given).__name__}")
    text = keys.sql_key(str.__str__(given))
    size = len(text.encode())
    if not 0 < size <= limits.FACT_TEXT_BYTES_MAX:
        raise RejectedError(f"text: {size} bytes; 1 to {limits.FACT_TEXT_BYTES_MAX} are allowed")
    return text


def _metadata(given: object) -> tuple[str | None, bytes | None]:
    if given is None:
        return None, None
    if not isinstance(given, Mapping):
        raise RejectedError(f"metadata: a mapping is needed, not {type(given).__name__}")
    return encoded(dict(given), what="metadata", bytes_max=limits.FACT_METADATA_BYTES_MAX)


def _content(one: Fact) -> tuple[object, ...]:
    return one.text, one.namespace, canonical(one.metadata)
