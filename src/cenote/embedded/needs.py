"""What one user of a data directory asks for."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple


class NatsAddress(NamedTuple):
    """Where a nats-server is and how to log in."""

    url: str
    user: str
    password: str


Recover = Callable[[NatsAddress, str], Awaitable[None]]
"""Drains the KV store at this address into the PostgreSQL of this DSN and moves its streams past their high
water. Streams may be missing: their creation may be what was lost."""


class Needs(NamedTuple):
    nats: bool
    postgres: bool
    nats_bin: str | Path | None
    postgres_bin: str | Path | None
    sync_interval_ms: int
    recover: Recover
    sql_dsn: str | None  # where recovery drains to when PostgreSQL is not ours
