"""A task as users know it, what they may add, and how both stand in SQL."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NotRequired, TypedDict
from uuid import UUID

import msgspec

from cenote import limits
from cenote.errors import RejectedError
from cenote.model import key as keys
from cenote.model.canonical import canonical
from cenote.model.key import from_sql_key as _plain
from cenote.model.uuid7 import uuid7
from cenote.sql.jsonb import decoded, encoded
from cenote.sql.tasks import Claimed, NewRow, TaskRow, Times

STATUSES: Final = ("pending", "running", "retry", "done", "failed", "cancelled", "expired")


class Task(msgspec.Struct, frozen=True):
    """Something that is to be done. Times are PostgreSQL's, UTC. (A Struct: as a dataclass it took as long to make as
    PostgreSQL takes to claim it.)

    Attributes:
        id: what names it; adding it again under the same id changes nothing.
        type: which workers it is for.
        payload: the value that was given.
        metadata: what was said about it.
        status: pending, running, retry (it failed and comes again), done, failed (a dead letter), cancelled or expired.
        priority: higher ones come first.
        attempts: how often it was begun.
        attempts_max: it is a dead letter when the last of so many has failed.
        created_at: when it was added.
        run_at: not before this.
        expires_at: not after this; None: however late.
        lease_until: while it is running: another worker may take it after this.
        token: of its last claim: whoever finishes it must show this.
        worker: who claimed it last.
        dedupe_key: while it is live there is no other one of its type with this key.
        last_error: what the last failure was, or None.
        result: what `complete` was given.
        finished_at: when it was done or given up, or None.
    """

    id: UUID
    type: str
    payload: Any
    metadata: dict[str, Any]
    status: str
    priority: int
    attempts: int
    attempts_max: int
    created_at: datetime
    run_at: datetime
    expires_at: datetime | None
    lease_until: datetime | None
    token: UUID | None
    worker: str | None
    dedupe_key: str | None
    last_error: str | None
    result: Any
    finished_at: datetime | None


class NewTask(TypedDict):
    """One of `add_many`: what `add` takes."""

    task_type: str
    payload: NotRequired[object]
    priority: NotRequired[int]
    run_at: NotRequired[datetime | None]
    delay: NotRequired[timedelta | float | None]
    expires_in: NotRequired[timedelta | float | None]
    attempts_max: NotRequired[int | None]
    dedupe_key: NotRequired[str | None]
    metadata: NotRequired[Mapping[str, object] | None]
    task_id: NotRequired[UUID | None]


_GIVEN: Final = NewTask.__required_keys__ | NewTask.__optional_keys__


def incoming(given: object, attempts_max: int, now_ms: int) -> NewRow:
    """The row of a task that somebody wants to add. RejectedError names the field and its limit."""
    if not isinstance(given, Mapping):
        raise RejectedError(f"a mapping with the fields of a task is needed, not {type(given).__name__}")
    if "task_type" not in given:
        raise RejectedError("task_type: it is missing")
    for field in sorted(given.keys() - _GIVEN, key=str):
        raise RejectedError(f"{field!r}: a task has no such field; it may have {', '.join(sorted(_GIVEN))}")
    run_at, delay = given.get("run_at"), given.get("delay")
    if run_at is not None and delay is not None:
        raise RejectedError("run_at, delay: give one of them")
    expires_in, dedupe_key = given.get("expires_in"), given.get("dedupe_key")
    tries = given.get("attempts_max")
    payload = encoded(given.get("payload"), what="payload", bytes_max=limits.TASK_BYTES_MAX)
    return NewRow(
        identity(given.get("task_id") or uuid7()), type_text(given["task_type"]), *payload,
        *_metadata(given.get("metadata")), _within(given.get("priority", 0), "priority", -32_768, 32_767),
        attempts_max if tries is None else _within(tries, "attempts_max", 1, limits.TASK_ATTEMPTS_MAX),
        None if dedupe_key is None else keys.sql_key(_text(dedupe_key, "dedupe_key", limits.TASK_DEDUPE_CHARS_MAX)),
        _time(run_at, now_ms), timedelta(0) if delay is None else duration(delay, "delay"),
        None if expires_in is None else duration(expires_in, "expires_in", zero=False),
    )  # fmt: skip


def size(row: NewRow) -> int:
    """About how many bytes a task has on its way."""
    return sum(len(part) for part in (row.payload, row.raw, row.metadata, row.metadata_raw) if part is not None)


def fresh(row: NewRow, times: Times) -> Task:
    """A task that has just been added."""
    return task(
        TaskRow(
            row.task_id, row.task_type, row.payload, row.raw, row.metadata, row.metadata_raw, "pending", row.priority,
            0, row.attempts_max, *times, None, None, None, row.dedupe_key, None, None, None, None,
        )
    )  # fmt: skip


def task(row: TaskRow) -> Task:
    """A task as it stands in SQL. CodecError when it cannot be read."""
    return Task(
        id=row.task_id,
        type=_plain(row.task_type),
        payload=decoded(row.payload, row.raw),
        metadata={} if row.metadata is None and row.metadata_raw is None else decoded(row.metadata, row.metadata_raw),
        status=row.status,
        priority=row.priority,
        attempts=row.attempts,
        attempts_max=row.attempts_max,
        created_at=row.created_at,
        run_at=row.run_at,
        expires_at=row.expires_at,
        lease_until=row.lease_until,
        token=row.token,
        worker=row.worker and _plain(row.worker),
        dedupe_key=row.dedupe_key and _plain(row.dedupe_key),
        last_error=row.last_error and _plain(row.last_error),
        result=None if row.result is None and row.result_raw is None else decoded(row.result, row.result_raw),
        finished_at=row.finished_at,
    )


def held(rows: Sequence[Claimed], token: UUID, worker: str) -> list[Task]:
    """Tasks that a claim took. Their fields are given by position: that takes a third of the time, and a worker waits
    for these."""
    name = _plain(worker)
    return [
        Task(
            task_id, _plain(kind), decoded(payload, raw),
            {} if metadata is None and metadata_raw is None else decoded(metadata, metadata_raw), "running", priority,
            attempts, attempts_max, created, run_at, expires, until, token, name, dedupe and _plain(dedupe),
            error and _plain(error), None, None,
        )
        for (
            created, run_at, until, task_id, kind, payload, raw, metadata, metadata_raw, priority, attempts,
            attempts_max, expires, dedupe, error,
        ) in rows
    ]  # fmt: skip


def same(one: Task, other: Task) -> bool:
    """Whether both ask for the same."""
    return (one.type, canonical(one.payload)) == (other.type, canonical(other.payload))


def type_text(given: object) -> str:
    """A task's type, SQL-escaped."""
    return keys.sql_key(_text(given, "task_type", limits.TASK_TYPE_CHARS_MAX))


def worker_text(given: object) -> str:
    """A worker's name, SQL-escaped."""
    return keys.sql_key(_text(given, "worker", limits.TASK_WORKER_CHARS_MAX))


def error_text(given: object) -> str:
    """What is kept of an error: its kind and its words, as far as there is room."""
    text = f"{type(given).__name__}: {given}" if isinstance(given, BaseException) else given
    if not isinstance(text, str):
        raise RejectedError(f"error: a str or an exception is needed, not {type(given).__name__}")
    return keys.sql_key(text[: limits.TASK_ERROR_CHARS_MAX])


def identity(given: object) -> UUID:
    """A task's id, of itself or of the task."""
    if isinstance(given, Task):
        return given.id
    if not isinstance(given, UUID):
        raise RejectedError(f"task_id: a UUID is needed, not {type(given).__name__}")
    return given


def duration(given: object, what: str, *, zero: bool = True) -> timedelta:
    """A duration in seconds, or as it is. RejectedError names the limit."""
    if isinstance(given, int | float) and not isinstance(given, bool) and abs(given) <= limits.TTL_S_MAX:
        given = timedelta(seconds=given)
    least = timedelta(0) if zero else timedelta(milliseconds=1)
    if not isinstance(given, timedelta) or not least <= given <= timedelta(seconds=limits.TTL_S_MAX):
        raise RejectedError(
            f"{what}: {given!r} is no duration; {0 if zero else 0.001:g} to {limits.TTL_S_MAX} seconds are allowed"
        )
    return given


def _time(given: object, now_ms: int) -> datetime | None:
    if given is None:
        return None
    if not isinstance(given, datetime) or given.utcoffset() is None:
        raise RejectedError(f"run_at: a datetime with a time zone is needed, not {given!r}")
    ahead_s = given.timestamp() - now_ms / 1000
    if ahead_s < -limits.TASK_PAST_S_MAX:
        raise RejectedError(
            f"run_at: {given.isoformat()} is past; up to {limits.TASK_PAST_S_MAX} s are forgiven",
            hint="leave it out to run the task at once",
        )
    if ahead_s > limits.TTL_S_MAX:
        raise RejectedError(f"run_at: {given.isoformat()} is more than a century ahead")
    return given.astimezone(UTC)


def _within(given: object, what: str, least: int, most: int) -> int:
    if type(given) is not int or not least <= given <= most:
        raise RejectedError(f"{what}: an int from {least} to {most} is needed, not {given!r}")
    return given


def _text(given: object, what: str, chars_max: int) -> str:
    if not isinstance(given, str):
        raise RejectedError(f"{what}: a str is needed, not {type(given).__name__}")
    if not 0 < len(given) <= chars_max:
        raise RejectedError(f"{what}: {len(given)} characters; 1 to {chars_max} are allowed")
    return str.__str__(given)


def _metadata(given: object) -> tuple[str | None, bytes | None]:
    if given is None or given == {}:
        return None, None
    if not isinstance(given, Mapping):
        raise RejectedError(f"metadata: a mapping is needed, not {type(given).__name__}")
    return encoded(dict(given), what="metadata", bytes_max=limits.TASK_METADATA_BYTES_MAX)
