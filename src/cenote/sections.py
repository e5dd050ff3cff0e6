"""The sections of the configuration: each setting with its default, its range and a sentence.

Units stand last in the names. What holds between two settings is checked in `_relations`.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, Secret, SecretStr, field_validator, model_validator

from cenote import limits

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Bytes = Annotated[int, Field(ge=limits.MIB, le=2**50)]
Milliseconds = Annotated[int, Field(ge=1, le=86_400_000)]
Seconds = Annotated[int | float, Field(gt=0, le=limits.TTL_S_MAX, allow_inf_nan=False)]
WholeSeconds = Annotated[int, Field(ge=1, le=limits.TTL_S_MAX)]


def _at_most(low_name: str, low: float, high_name: str, high: float) -> None:
    if low > high:
        raise ValueError(f"{low_name} ({low}) is above {high_name} ({high})")


def _masked(url: str) -> str:
    """Hide passwords in a URL; a user alone is NATS's way to write a token, hence hidden there."""
    scheme, separator, rest = url.partition("://")
    lone = scheme.lower() not in ("postgresql", "postgres")
    userinfo, at, hosts = rest.rpartition("@") if separator else scheme.rpartition("@")
    user, colon, _ = userinfo.partition(":")
    if at:
        user = user if colon or not lone else ""
        userinfo = f"{user}:***" if colon else user or "***"
    hosts = re.sub(r"(?i)((?:password|passfile|token)=)[^&\s]*", r"\1***", hosts)
    return f"{scheme}{separator}{userinfo}{at}{hosts}" if separator else f"{userinfo}{at}{hosts}"


class Url(Secret[str]):
    """A server's URL. Printed, it keeps scheme, user and hosts and hides what lets someone in."""

    def _display(self) -> str:
        return _masked(self._secret_value)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError(f"{value} is no value for it")
        return value


class KvConfig(_Section):
    """NATS JetStream."""

    url: Url | None = Field(default=None, description="`nats://a,b,c`; none: an embedded server")
    user: str | None = Field(default=None, description="user name, where the URL has none")
    password: SecretStr | None = Field(default=None, description="its password")
    creds: Path | None = Field(default=None, description="credentials file (JWT and seed)")
    tls_ca: Path | None = Field(default=None, description="certificate authority the server is checked against")
    tls_cert: Path | None = Field(default=None, description="our certificate")
    tls_key: Path | None = Field(default=None, description="its key")
    replicas: Annotated[int, Field(ge=1, le=5)] = Field(default=1, description="copies of each bucket in a cluster")
    sync_interval_ms: Milliseconds = Field(default=200, description="embedded: the longest time between two fsyncs")
    bytes_max: Bytes = Field(default=1024 * limits.MIB, description="size of the state bucket")
    request_timeout_ms: Milliseconds = Field(default=5000, description="one attempt")
    deadline_ms: Milliseconds = Field(default=15_000, description="a call with all its attempts")
    outage_after_ms: Milliseconds = Field(
        default=5000, description="away for so long, calls are refused at once instead of after their deadline"
    )
    reads_when_down: Literal["refuse", "sql"] = Field(
        default="refuse",
        description="what a read gets then that memory cannot answer; `sql`: what was flushed, as stale",
    )
    fast_lane: bool = Field(default=True, description="read replies past nats-py's per-message objects")

    @model_validator(mode="after")
    def _relations(self) -> "KvConfig":
        _at_most("request_timeout_ms", self.request_timeout_ms, "deadline_ms", self.deadline_ms)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key are given together")
        return self


class SqlConfig(_Section):
    """PostgreSQL."""

    url: Url | None = Field(default=None, description="`postgresql://…`; none: an embedded server")
    pool_min: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=2, description="connections kept, from the first use"
    )
    pool_max: Annotated[int, Field(ge=1, le=1000)] = Field(default=10, description="most connections")
    acquire_timeout_s: Seconds = Field(default=30, description="longest wait for a free connection")
    outage_after_ms: Milliseconds = Field(
        default=5000, description="away for so long, calls are refused at once instead of after their deadline"
    )
    idle_timeout_s: Seconds = Field(default=600, description="an idle connection is closed after this")
    max_lifetime_s: Seconds = Field(default=7200, description="a connection is replaced after this")
    migrate: Literal["auto", "check"] | None = Field(
        default=None,
        description="at start: migrate, or refuse a schema behind; none: `auto` embedded, else `check`",
    )
    search_index: Literal["off", "projection", "inline"] = Field(default="off", description="index on content")

    @model_validator(mode="after")
    def _relations(self) -> "SqlConfig":
        _at_most("pool_min", self.pool_min, "pool_max", self.pool_max)
        return self


class StateConfig(_Section):
    """The working state of agents."""

    ttl_s: Annotated[Seconds, Field(ge=limits.EVICT_AGE_MIN_MS / 1000)] = Field(
        default=1800, description="idle time after which an entry that SQL has leaves KV"
    )
    resolver: Annotated[str, Field(min_length=1, max_length=100)] = Field(
        default="lww", description="the rule for two writes that meet under one key"
    )
    resolvers: dict[str, str] = Field(
        default={}, description="other rules by key pattern (`*`, `?`); the first that fits"
    )
    tombstone_s: Seconds = Field(default=86_400, description="how long a delete is remembered in SQL")


class SessionConfig(_Section):
    """Sessions."""

    ttl_s: WholeSeconds = Field(default=3600, description="idle life of a session")


class CacheConfig(_Section):
    """Cached query results."""

    ttl_s: WholeSeconds = Field(default=300, description="life of a cached result")


class TasksConfig(_Section):
    """The queue of tasks."""

    lease_s: Seconds = Field(default=30, description="silence after which another worker may take a running task")
    attempts_max: Annotated[int, Field(ge=1, le=1_000)] = Field(
        default=5, description="runs of a task before it is a dead letter, unless it says otherwise"
    )
    poll_ms: Milliseconds = Field(default=1000, description="idle workers look this often, woken or not")
    retry_ms: Milliseconds = Field(default=1000, description="wait after the first failure; it doubles with each")
    retry_ms_max: Milliseconds = Field(default=3_600_000, description="no wait after a failure is longer")
    retention_s: Seconds = Field(default=2_592_000, description="how long a finished task is kept")


class MessagesConfig(_Section):
    """The log of messages."""

    partition_s: WholeSeconds = Field(default=604_800, description="time that one partition holds")
    ahead_count: Annotated[int, Field(ge=1, le=100)] = Field(default=2, description="partitions made before their time")
    retention_s: Seconds | None = Field(default=None, description="older partitions are dropped; none: never")
    poll_ms: Milliseconds = Field(default=1000, description="subscribers look this often, woken or not")
    search_index: bool = Field(
        default=False, description="an index on the words of messages, in partitions made from then on"
    )


class KnowledgeConfig(_Section):
    """Facts."""

    embedder: str | None = Field(
        default=None, description="a registered embedder, e.g. `wordllama`; none: facts are found by text and filter"
    )
    vector_index: Literal["auto", "off"] = Field(
        default="auto", description="`auto`: pgvector indexes large namespaces, where the server has it"
    )
    vector_index_rows: Annotated[int, Field(ge=100, le=1_000_000_000)] = Field(
        default=50_000, description="embeddings from which on a namespace is large"
    )


class CheckpointsConfig(_Section):
    """Checkpoints: when they are made unasked, and how many of each agent stay."""

    last: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="the newest ones of an agent that stay; none: all of them"
    )
    hours: Annotated[int, Field(ge=0)] = Field(
        default=0, description="of so many last hours the last one stays as well"
    )
    days: Annotated[int, Field(ge=0)] = Field(default=0, description="of so many last days the last one stays as well")
    every_writes: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="one is made of an agent of which so many writes have reached PostgreSQL; none: never"
    )
    every_s: Annotated[float, Field(ge=1)] | None = Field(
        default=None, description="one is made so long after the first write since the last such one; none: never"
    )


class RepairConfig(_Section):
    """Comparisons of NATS with PostgreSQL that the process that flushes makes by itself."""

    enabled: bool = Field(default=True, description="whether it makes them")
    every_s: Annotated[float, Field(ge=1)] = Field(default=21_600, description="pause between two of everything")
    entries_per_s: Annotated[float, Field(gt=0)] = Field(default=1_000, description="how quickly it goes")


class RoutesConfig(_Section):
    """Which kind of data lives where (`store.data`)."""

    override: dict[str, dict[str, Any]] = Field(
        default={}, description='fields of a category\'s route: `{"AGENT_STATE": {"durability": "sql"}}`'
    )


class MemoryConfig(_Section):
    """L1, the memory of this process."""

    entries_max: Annotated[int, Field(ge=0, le=100_000_000)] = Field(
        default=10_000, description="most entries; 0: none"
    )
    bytes_max: Annotated[int, Field(ge=0, le=2**50)] = Field(
        default=64 * limits.MIB, description="most bytes of values"
    )
    ttl_s: Seconds = Field(default=60, description="longest life of an entry that hears of no change")


class FlushConfig(_Section):
    """The way from KV to SQL."""

    enabled: bool = Field(default=True, description="whether this process flushes at all")
    active_max: Annotated[int, Field(ge=1, le=64)] = Field(default=1, description="flushers that pull at a time")
    threshold_count: Count = Field(default=50, description="so many dirty keys start a flush …")
    interval_ms: Milliseconds = Field(default=20, description="… or this time")
    batch_count_max: Annotated[int, Field(ge=1, le=10_000)] = Field(default=500, description="most entries of a flush")
    window_ms: Milliseconds = Field(default=200, description="promised age of an unflushed write; older is degraded")
    backlog_count_max: Count = Field(default=1_000_000, description="unflushed entries above which writes are refused")
    drain_ms: Annotated[int, Field(ge=0, le=86_400_000)] = Field(default=5000, description="wait for SQL when leaving")
    changes_s: Annotated[float, Field(gt=0, le=limits.TTL_S_MAX)] = Field(
        default=604_800, description="how long `store.changes()` can look back"
    )

    @model_validator(mode="after")
    def _relations(self) -> "FlushConfig":
        _at_most("threshold_count", self.threshold_count, "batch_count_max", self.batch_count_max)
        _at_most("batch_count_max", self.batch_count_max, "backlog_count_max", self.backlog_count_max)
        _at_most("interval_ms", self.interval_ms, "window_ms", self.window_ms)
        return self


class ConflictsConfig(_Section):
    """The conflict log."""

    ttl_s: WholeSeconds = Field(default=604_800, description="how long a record is kept")
    count_max: Count = Field(default=100_000, description="records beyond it leave, the oldest first")


class RetryConfig(_Section):
    """Trying again, with full jitter."""

    base_ms: Milliseconds = Field(default=5, description="the first wait is at most this")
    wait_ms_max: Milliseconds = Field(default=5000, description="no wait is longer")
    deadline_ms: Milliseconds = Field(default=15_000, description="all attempts together")

    @model_validator(mode="after")
    def _relations(self) -> "RetryConfig":
        _at_most("base_ms", self.base_ms, "wait_ms_max", self.wait_ms_max)
        return self


class HealthConfig(_Section):
    """Verdicts."""

    sql_ms_max: Milliseconds = Field(default=10, description="a slower probe of PostgreSQL is degraded")
    window_s: Seconds = Field(default=10, description="what is judged: the last so many seconds")


class TelemetryConfig(_Section):
    """OpenTelemetry; `/metrics` needs none of it."""

    traces: bool = Field(
        default=False, description="make spans of verbs and flushes, for an SDK in the program: docs/monitoring.md"
    )


class EmbeddedConfig(_Section):
    """The servers that come in wheels."""

    data_dir: str = Field(
        default_factory=lambda: platformdirs.user_data_dir("cenote", appauthor=False),
        description="where they keep their data; `:temporary:` vanishes at exit",
        min_length=1,
    )
    postgres_bin: Path | None = Field(default=None, description="directory of PostgreSQL's programs; none: the wheel's")
    nats_bin: Path | None = Field(default=None, description="nats-server; none: the wheel's")

    @field_validator("data_dir", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value


class AdminConfig(_Section):
    """The admin port of `cenote serve`."""

    host: Annotated[str, Field(min_length=1)] = Field(default="127.0.0.1", description="address it listens on")
    port: Annotated[int, Field(ge=0, le=65_535)] | None = Field(
        default=None, description="none: no port; 0: any free one"
    )
    token: SecretStr | None = Field(default=None, description="what callers must present")
    log_format: Literal["text", "json"] = Field(
        default="text", description="what `serve` and `up` log: lines for people, or one JSON object a line"
    )
