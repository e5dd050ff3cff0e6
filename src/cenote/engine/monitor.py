"""What can be said about the distance between the tiers at this moment (I8; flow rule 19)."""

import asyncio
import time
from dataclasses import dataclass, field

from cenote import limits
from cenote.engine.core import reading
from cenote.engine.lease import Board
from cenote.engine.machines import Machines
from cenote.engine.slots import together
from cenote.errors import CenoteError, UnavailableError

_ANSWER_S = limits.SILENCE_MS_MAX / 1000  # who asks how things are does not want to hang with them


@dataclass(frozen=True, slots=True)
class Stats:
    """One look at a store.

    Attributes:
        kv_entries: entries in KV, tombstones and clean copies included.
        kv_bytes: bytes of the stream; `kv_fill` its share of `kv.bytes_max`, 0 … 1.
        sql_rows: rows of `agents.state` (an estimate above 32 MiB); None while PostgreSQL is away.
        dirty_entries: entries that no flusher has acknowledged yet.
        oldest_dirty_ms: how old the oldest write that is not in SQL may be; 0 when none is.
        avg_flush_ms: mean duration of a flush of the active flushers.
        lag_ms_p50, lag_ms_p95, lag_ms_p99: KV ack → SQL commit over the last `health.window_s` seconds; of several
            flushers the highest.
        violations: writes whose lag exceeded `flush.window_ms` since the active flushers began.
        hits: reads of this process by the tier that answered, and misses.
        flushed, commits, evicted, quarantined, unknown_formats: of the active flushers since they began.
        expired, collected, blobs_collected: rows of SQL whose time was over, tombstones and large values that left it,
            of the active flushers since they began.
        hydrated, writes: of this process since it opened the store.
        sql_commits_lost: commits that PostgreSQL had and then had no more, because it went back in time; 0 is the rule.
        conflicts: meetings of two writes in this process since it opened the store: strategy → outcome → how many.
        flusher: the process that flushes, "" when none does.
        epoch: the newest epoch.
    """

    kv_entries: int
    kv_bytes: int
    kv_fill: float
    sql_rows: int | None
    dirty_entries: int
    oldest_dirty_ms: int
    avg_flush_ms: float | None
    lag_ms_p50: float | None
    lag_ms_p95: float | None
    lag_ms_p99: float | None
    violations: int
    flushed: int
    commits: int
    evicted: int
    expired: int
    collected: int
    blobs_collected: int
    hydrated: int
    quarantined: int
    unknown_formats: int
    writes: int
    sql_commits_lost: int
    flusher: str
    epoch: int
    hits: dict[str, int] = field(default_factory=dict)
    conflicts: dict[str, dict[str, int]] = field(default_factory=dict)


async def stats(machines: Machines) -> Stats:
    """Ask KV, the flusher's board and SQL. Raises UnavailableError when KV cannot be reached."""
    core, counts = machines.core, machines.core.counts
    with reading():
        await core.probe_once()
        info = await core.stream.info()
        board = await machines.lease.read()
        board = board and await together(core, board)
    now_ms = core.now_ms()
    alive = board is not None and board.holder != "" and board.alive(now_ms)
    dirty = core.fullness.backlog
    oldest_ms = 0 if not dirty else await _oldest_dirty_ms(machines, board, now_ms)
    try:
        async with asyncio.timeout(_ANSWER_S):
            sql_rows: int | None = await core.table.count_rows()
    except (CenoteError, TimeoutError):
        sql_rows = None
    return Stats(
        kv_entries=info.messages, kv_bytes=info.bytes, kv_fill=round(core.fullness.share, 4), sql_rows=sql_rows,
        dirty_entries=dirty, oldest_dirty_ms=max(0, oldest_ms),
        avg_flush_ms=board.avg_flush_ms if board else None,
        lag_ms_p50=board.lag_ms_p50 if board else None, lag_ms_p95=board.lag_ms_p95 if board else None,
        lag_ms_p99=board.lag_ms_p99 if board else None,
        violations=board.violations if board else 0, flushed=board.flushed if board else 0,
        commits=board.commits if board else 0, evicted=board.evicted if board else 0, hydrated=counts.hydrated,
        expired=board.expired if board else 0, collected=board.collected if board else 0,
        blobs_collected=board.blobs_collected if board else 0,
        quarantined=board.quarantined if board else 0, unknown_formats=board.unknown_formats if board else 0,
        writes=counts.writes, sql_commits_lost=board.sql_commits_lost if board else 0,
        flusher=board.holder if alive and board else "", epoch=core.epochs.newest,
        hits={"memory": counts.hits_l1, "kv": counts.hits_kv, "sql": counts.hits_sql, "miss": counts.misses},
        conflicts=machines.conflicts.counted(),
    )  # fmt: skip


async def _oldest_dirty_ms(machines: Machines, board: Board | None, now_ms: int) -> int:
    """The age of the oldest write that SQL may lack. Since the last commit, or since the flusher last saw nothing to
    do, is the upper bound, exact to a renewal of the board; the age of the oldest entry is only a lower bound, for a
    hot key is always young, so it counts only while the flusher is known to be alive."""
    core = machines.core
    # Where nobody ever flushed, all that was written since the stream began may be missing.
    began_ms = core.epochs.starts_us[0] // 1000
    since_ms = began_ms if board is None else max(board.committed_ms, board.clean_ms, began_ms)
    if now_ms - since_ms > limits.LEASE_EXPIRE_MS:
        return now_ms - since_ms
    name = core.durable_name
    consumer = None if name is None else await core.consumer(name)
    floor = 0 if consumer is None else consumer.floor
    async for message in core.live(core.stream.prefix + ">", floor + 1):
        return core.now_ms() - message.time_us // 1000
    return 0


async def round_trip_ms(machines: Machines) -> tuple[float | CenoteError, float | CenoteError]:
    """Milliseconds that NATS and PostgreSQL take to answer, or why they do not."""
    core = machines.core
    results: list[float | CenoteError] = []
    for ask in (core.stream.info, lambda: core.db.fetchval("SELECT 1")):
        try:
            async with asyncio.timeout(_ANSWER_S):
                await ask()  # the first question may open connections, which is not what is measured
                started = time.monotonic()
                await ask()
            results.append((time.monotonic() - started) * 1000)
        except CenoteError as error:
            results.append(error)
        except TimeoutError:
            results.append(UnavailableError(f"no answer within {_ANSWER_S:g} s"))
    return results[0], results[1]
