"""Bringing a whole agent back from SQL, against a bare SELECT and a bare pipelined publish of the same rows."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator

import asyncpg
from nats.aio.client import Client

from cenote.bench.ground import (
    UNFLUSHED,
    Effort,
    Ground,
    bare_bucket,
    bare_nats,
    bare_postgres,
    bodies,
    core_of,
    samples,
)
from cenote.bench.pace import in_turns, medians, ratios
from cenote.bench.table import Bound, Result, Row
from cenote.store import Store

HYDRATE = Row(
    "hydrate an agent of {:,} keys", "bare SELECT + bare pipelined publish, their sum", "× its time",
    Bound("≤", 2), Bound("≤", 1.3),
)  # fmt: skip
_PENDING_MAX = 20_000


async def hydrate_row(ground: Ground, effort: Effort) -> AsyncIterator[Result]:
    """Each round the agent's keys are purged from KV, then brought back. Nobody flushes meanwhile: a flusher meets
    clean copies in any process, at its own pace."""
    count = effort.hydrate_keys
    arguments = ground.arguments()
    async with ground.at(arguments) as store:
        scout = store.agent("scout-7")
        await scout.put_many({f"key-{number:05}": samples()[number % len(samples())] for number in range(count)})
        await store.flush()
    async with ground.at(arguments, **UNFLUSHED) as store:
        nats, postgres = await bare_nats(store), await bare_postgres(store)
        try:
            await bare_bucket(nats, store)
            bare = _Bare(nats, postgres, store, count)
            scout = store.agent("scout-7")

            async def ours() -> float:
                await _purge(store, core_of(store).stream.name)
                began = time.perf_counter()
                found = await scout.hydrate()
                took_s = time.perf_counter() - began
                assert found.keys == count
                return took_s

            pairs = await in_turns(effort.hydrate_rounds, ours, bare.copy)
            note = f"{medians(pairs, 1e3, 'ms')} ({statistics.median(bare.select_s) * 1e3:.0f} of them SELECT)"
            yield Result(HYDRATE._replace(what=HYDRATE.what.format(count)), ratios(pairs), note)
        finally:
            await nats.close()
            await postgres.close()


async def _purge(store: Store, stream: str) -> None:
    await core_of(store).link.api(f"STREAM.PURGE.{stream}", {})


class _Bare:
    """One SELECT of everything, then all publishes at once, with an acknowledgement each."""

    def __init__(self, nats: Client, postgres: asyncpg.Connection, store: Store, count: int) -> None:
        self._nats = nats.jetstream(publish_async_max_pending=_PENDING_MAX)
        self._postgres = postgres
        self._store = store
        self._count = count
        self._bucket = f"{store.config.namespace}_BARE"
        self._select = (
            f"SELECT key, value::text AS value, version FROM {core_of(store).names.schema('agents')}.state"
            " WHERE agent_id = $1 AND NOT deleted"
        )
        self.select_s: list[float] = []

    async def copy(self) -> float:
        await _purge(self._store, f"KV_{self._bucket}")
        began = time.perf_counter()
        rows = await self._postgres.fetch(self._select, self._store.agent("scout-7").id)
        self.select_s.append(time.perf_counter() - began)
        answers = [
            await self._nats.publish_async(f"$KV.{self._bucket}.scout-7.{row['key']}", row["value"].encode())
            for row in rows
        ]
        await asyncio.gather(*answers)
        took_s = time.perf_counter() - began
        assert len(rows) == self._count
        assert len(bodies()[0]) <= len(rows[0]["value"])
        return took_s
