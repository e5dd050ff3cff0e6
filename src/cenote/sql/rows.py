"""What travels between the engine and SQL. Times are µs since 1970 in the KV server's clock unless said
otherwise."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID


class Row(NamedTuple):
    """One row of `agents.state`. `key` is SQL-escaped; `value` is JSON text; `raw` the exact bytes where it
    is set."""

    agent_id: UUID
    key: str
    value: str | None
    raw: bytes | None
    version: int
    epoch: int
    kv_time_us: int
    deleted: bool
    quarantined: bool
    expires_us: int | None


class Guard(NamedTuple):
    """The epoch and incarnation under which a batch was fetched: if either has changed, nothing is written
    (F-inc)."""

    epoch: int
    incarnation: str


class Heartbeat(NamedTuple):
    """What a flusher leaves behind with each commit: the highest sequence and time it has flushed."""

    flusher_id: str
    store_id: str | UUID
    high_water: int
    kv_time_us: int
    violations: int = 0  # so far
    stats: str | None = None  # JSON text; None keeps what is there, and keeps the statement's WAL small


class GcFloor(NamedTuple):
    """Up to (epoch, version) rows may have been collected: none is written without a look at KV (rule 12). `round`
    counts the collections."""

    epoch: int
    version: int
    round: int


class Flushed(NamedTuple):
    """The outcome of a flush: rows that were newer than SQL's, PostgreSQL's own clock just before the commit, and the
    floor up to which nothing was written."""

    applied: int
    committed_us: int
    floor: GcFloor = GcFloor(0, 0, 0)


def flushed(row: Sequence[int] | None) -> Flushed | None:
    """What the statement returned; None when its guard did not hold."""
    return None if row is None else Flushed(row[0], row[1], GcFloor(*row[2:5]))


class SqlVersion(NamedTuple):
    """What SQL holds of a key."""

    epoch: int
    version: int
    kv_time_us: int


class EpochRow(NamedTuple):
    """One row of `agents.epochs`; `incarnation` is None once the epoch is over."""

    epoch: int
    from_us: int
    store_id: str
    stream_created: str
    incarnation: str | None
    sql_identity: str
    reason: str


class NewEpoch(NamedTuple):
    """An epoch to begin."""

    from_us: int
    store_id: str | UUID
    stream_created: str
    incarnation: str
    sql_identity: str
    reason: str


class Claim(NamedTuple):
    """What a stream brings forward to be the one of a database: the ids of stores that it or its neighbours name, and
    the data directory of an embedded NATS ("" for others)."""

    stream_created: str
    created_us: int
    store_ids: frozenset[str]
    home: str


class FlusherRow(NamedTuple):
    """One row of `agents.flushers`; `committed_us` is PostgreSQL's clock, `age_ms` the time since, by that
    clock."""

    flusher_id: str
    store_id: str
    epoch: int
    high_water: int
    kv_time_us: int
    committed_us: int
    age_ms: int
    commits: int
    rows: int
    violations: int
    stats: str | None


class HighWater(NamedTuple):
    """The highest sequence and the newest KV time that any flusher has committed in an epoch."""

    sequence: int
    kv_time_us: int


class AgentRow(NamedTuple):
    """A registered agent with the number of its live keys and its last flush (PostgreSQL's clock); `deleted`: what it
    said of itself; `seen_us`: its last sign of life (the KV server's clock); `phase`: as it was written down last."""

    agent_id: UUID
    name: str
    keys: int
    updated_us: int | None
    agent_type: str
    status: str
    deleted: bool
    seen_us: int | None
    phase: str | None


class DeadLetter(NamedTuple):
    """A write that SQL refused. `created_us` is PostgreSQL's clock."""

    id: int
    agent_id: UUID
    key: str
    epoch: int
    version: int
    kv_time_us: int
    reason: str
    raw: bytes
    envelope: str
    created_us: int
