"""What all rows stand on: private servers in a directory that vanishes, a namespace for each row, bare drivers."""

import random
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg
import nats
from nats.aio.client import Client
from nats.js.kv import KeyValue

import cenote
from cenote.engine.core import Core
from cenote.model import value as values
from cenote.store import Opening, Store
from cenote.testing import TestServers

VALUE_BYTES = 200
_SAMPLES = 1_000


@dataclass(frozen=True)
class Effort:
    """How long each row is measured."""

    rounds: int
    round_s: float  # of one side, where a side can be measured by time
    backlog_rows: int
    backlog_rounds: int
    beside_s: float
    beside_rounds: int
    lag_s: int
    hydrate_keys: int
    hydrate_rounds: int
    wal_keys: int
    wal_rounds: int
    memory_keys: int
    million: bool


FULL = Effort(
    rounds=21, round_s=0.4, backlog_rows=20_000, backlog_rounds=9, beside_s=1.0, beside_rounds=9, lag_s=30,
    hydrate_keys=10_000, hydrate_rounds=7, wal_keys=20_000, wal_rounds=7, memory_keys=100_000, million=True,
)  # fmt: skip
QUICK = Effort(
    rounds=7, round_s=0.2, backlog_rows=5_000, backlog_rounds=3, beside_s=0.5, beside_rounds=3, lag_s=6,
    hydrate_keys=5_000, hydrate_rounds=3, wal_keys=10_000, wal_rounds=3, memory_keys=20_000, million=False,
)  # fmt: skip


UNFLUSHED: dict[str, Any] = {"flush__enabled": False, "flush__drain_ms": 0}
"""Settings of a process that leaves flushing to others, and does not wait for them when it leaves."""


@cache
def samples() -> tuple[dict[str, Any], ...]:
    """Working states of an agent, each exactly `VALUE_BYTES` as JSON, and no two alike."""
    dice = random.Random(11)
    found = []
    for step in range(_SAMPLES):
        state = {"goal": "map the cave", "step": step, "depth_m": dice.randrange(400) / 8, "open": ["tunnel-a"]}
        room = VALUE_BYTES - len(values.encode(state | {"notes": ""})[1])
        found.append(state | {"notes": "".join(dice.choices("abcdefghij klmnopqrst uvwxyz", k=room))})
    return tuple(found)


@cache
def bodies() -> tuple[bytes, ...]:
    """The same as the bytes that travel."""
    return tuple(values.encode(sample)[1] for sample in samples())


class Ground:
    """Running servers, and the ways to them."""

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="cenote-bench-")
        self._servers = TestServers(Path(self._directory) / "data")
        self._info: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        try:
            self._servers.start()
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._servers.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def description(self) -> str:
        """Which servers these are."""
        info = self._servers.info
        return f"nats-server {info['nats']['version']}, PostgreSQL {info['postgres']['version']}"

    def arguments(self, **overrides: Any) -> dict[str, Any]:
        """Arguments of `cenote.open()` for a namespace that nobody has used; plain data, fit for another process."""
        given = self._servers.fresh(**overrides)
        return given | {"data_dir": str(given["data_dir"])}

    def opening(self, **overrides: Any) -> Opening:
        """A store of its own on these servers."""
        return self.at(self.arguments(**overrides))

    @staticmethod
    def at(arguments: dict[str, Any], **overrides: Any) -> Opening:
        """Another store in the namespace of `arguments`."""
        return cenote.open(**{**arguments, **overrides})


def core_of(store: Store) -> Core:
    """What stands behind the face: a measurement looks at counters and addresses that users do not need."""
    return store._machines.core


async def bare_nats(store: Store) -> Client:
    """A connection of nats-py to the store's server."""
    kv = core_of(store).config.kv
    assert kv.url is not None
    assert kv.password is not None
    return await nats.connect(kv.url.get_secret_value(), user=kv.user, password=kv.password.get_secret_value())


async def bare_bucket(connection: Client, store: Store) -> KeyValue:
    """A bucket of nats-py's own, beside the store's."""
    return await connection.jetstream().create_key_value(bucket=f"{store.config.namespace}_BARE", history=1)


async def bare_postgres(store: Store) -> asyncpg.Connection:
    """A connection of asyncpg to the store's database."""
    url = core_of(store).config.sql.url
    assert url is not None
    return await asyncpg.connect(url.get_secret_value())
