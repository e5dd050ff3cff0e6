"""What can be said about the distance between the tiers at this moment (I8; flow rule 19)."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from cenote import limits
from cenote.engine.core import reading
from cenote.engine.lag import SPANS_S, Window
from cenote.engine.lease import Board
from cenote.engine.machines import Machines
from cenote.engine.slots import together
from cenote.errors import CenoteError, UnavailableError

_ANSWER_S = limits.SILENCE_MS_MAX / 1000  # who asks how things are does not want to hang with them


class MemoryStats(NamedTuple):
    """The five numbers that the specification asks for (7.1); None where nothing is known."""

    kv_entries: int
    sql_rows: int | None
    dirty_entries: int
    avg_flush_time: float | None
    consistency_window_p95: float | None


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
            flushers the highest. What waits counts as well, as old as the oldest of it may be: so they rise while
            nobody flushes.
        windows: the same of the last 10 s, minute and five minutes, by "10s", "1m" and "5m". The first forgets what was
            late once all was well for half of its time, as health does; the others forget nothing.
        flush_rate: rows that reached SQL, per second, over the last 10 s.
        batch_mean: rows of a commit, over the last minute; None when there was none.
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
    windows: dict[str, Window] = field(default_factory=dict)
    flush_rate: float = 0.0
    batch_mean: float | None = None

    def to_memory_stats(self) -> MemoryStats:
        """The specification's `MemoryStats`."""
        return MemoryStats(
            self.kv_entries, self.sql_rows, self.dirty_entries, self.avg_flush_ms, self.windows["10s"].p95
        )


async def stats(machines: Machines, *, sql: bool = True) -> Stats:
    """Ask KV, the flusher's board and, where it is worth it, SQL. Raises UnavailableError when KV cannot be reached."""
    core, counts = machines.core, machines.core.counts
    with reading():
        await core.probe_once()
        info = await core.stream.info()
        board = await machines.lease.read()
        board = board and await together(core, board)
    now_ms = core.now_ms()
    alive = board is not None and board.holder != "" and board.alive(now_ms)
    dirty = core.fullness.backlog
    oldest_ms = 0 if not dirty else max(0, await _oldest_dirty_ms(machines, board, now_ms))
    sql_rows = await _sql_rows(machines) if sql else None
    board = board or Board()
    windows = _windows(board, now_ms, dirty, oldest_ms)
    judged = Window(board.lag_ms_p50, board.lag_ms_p95, board.lag_ms_p99, windows["10s"].count)
    judged = _with_waiting(judged, dirty, oldest_ms)
    ten, minute = windows["10s"], windows["1m"]
    return Stats(
        kv_entries=info.messages, kv_bytes=info.bytes, kv_fill=round(core.fullness.share, 4), sql_rows=sql_rows,
        dirty_entries=dirty, oldest_dirty_ms=oldest_ms, avg_flush_ms=board.avg_flush_ms,
        lag_ms_p50=judged.p50, lag_ms_p95=judged.p95, lag_ms_p99=judged.p99,
        violations=board.violations, flushed=board.flushed, commits=board.commits, evicted=board.evicted,
        hydrated=counts.hydrated, expired=board.expired, collected=board.collected,
        blobs_collected=board.blobs_collected, quarantined=board.quarantined, unknown_formats=board.unknown_formats,
        writes=counts.writes, sql_commits_lost=board.sql_commits_lost,
        flusher=board.holder if alive else "", epoch=core.epochs.newest,
        hits={"memory": counts.hits_l1, "kv": counts.hits_kv, "sql": counts.hits_sql, "miss": counts.misses},
        conflicts=machines.conflicts.counted(), windows=windows, flush_rate=round(ten.count / SPANS_S["10s"], 1),
        batch_mean=round(minute.count / minute.commits, 1) if minute.commits else None,
    )  # fmt: skip


async def _sql_rows(machines: Machines) -> int | None:
    try:
        async with asyncio.timeout(_ANSWER_S):
            return await machines.core.table.count_rows()
    except (CenoteError, TimeoutError):
        return None


def _windows(board: Board, now_ms: int, dirty: int, oldest_ms: int) -> dict[str, Window]:
    """The board's, and what waits. What a board says that nobody renews is over when its span is."""
    silent_ms = now_ms - board.renewed_ms
    found = {}
    for name, span_s in SPANS_S.items():
        told = board.windows.get(name)
        window = Window() if told is None or silent_ms > span_s * 1000 else _window(told)
        found[name] = _with_waiting(window, dirty, oldest_ms)
    return found


def _window(told: list[float | None]) -> Window:
    p50, p95, p99, *counts = told
    return Window(p50, p95, p99, *(int(count or 0) for count in counts))


def _with_waiting(window: Window, dirty: int, oldest_ms: int) -> Window:
    """I8: a share counts what is not flushed, too. Of what waits the oldest is known alone, so all of it counts as
    that: the answer is never too good."""
    if not dirty:
        return window
    rank = window.count / (window.count + dirty)

    def raised(lag: float | None, share: float) -> float | None:
        return lag if rank >= share else max(lag or 0.0, float(oldest_ms))

    return replace(window, p50=raised(window.p50, 0.50), p95=raised(window.p95, 0.95), p99=raised(window.p99, 0.99))


async def _oldest_dirty_ms(machines: Machines, board: Board | None, now_ms: int) -> int:
    """The age of the oldest write that SQL may lack. Since the last commit, or since the flusher last saw nothing to
    do, is the upper bound, exact to a renewal of the board; the age of the oldest entry is only a lower bound, for a
    hot key is always young, so it counts only while the flusher is known to be alive. A flusher that is late with its
    board may be alive all the same: then the durable tells of its last ack."""
    core = machines.core
    # Where nobody ever flushed, all that was written since the stream began may be missing.
    began_ms = core.epochs.starts_us[0] // 1000
    since_ms = began_ms if board is None else max(board.committed_ms, board.clean_ms, began_ms)
    if now_ms - since_ms > limits.LEASE_EXPIRE_MS:
        return now_ms - since_ms
    name = core.durable_name
    consumer = None if name is None else await core.consumer(name)
    floor = 0 if consumer is None else consumer.floor
    if board is not None and now_ms - board.renewed_ms > limits.LEASE_MISSED_MS:
        since_ms = max(since_ms, 0 if consumer is None else consumer.acked_ms)
        if now_ms - since_ms > core.config.flush.window_ms:
            return now_ms - since_ms
    async for message in core.live(core.stream.prefix + ">", floor + 1):
        return core.now_ms() - message.time_us // 1000
    return 0


async def round_trip_ms(machines: Machines) -> tuple[float | CenoteError, float | CenoteError]:
    """Milliseconds that NATS and PostgreSQL take to answer, or why they do not."""
    core = machines.core
    kv, sql = await asyncio.gather(answers_in(core.stream.info), answers_in(lambda: core.db.fetchval("SELECT 1")))
    return kv, sql


async def answers_in(ask: Callable[[], Awaitable[object]], limit_s: float = _ANSWER_S) -> float | CenoteError:
    """Milliseconds that a question takes, or why it is not answered in time."""
    try:
        async with asyncio.timeout(limit_s):
            await ask()  # the first question may open connections, which is not what is measured
            started = time.monotonic()
            await ask()
        return (time.monotonic() - started) * 1000
    except CenoteError as error:
        return error
    except TimeoutError:
        return UnavailableError(f"no answer within {limit_s:g} s")
