"""What one process has counted of its own doings: nobody is asked, so it can be told when every server is away."""

from dataclasses import dataclass

from cenote.engine.differences import Kind
from cenote.engine.lag import LagWindow
from cenote.engine.machines import Machines
from cenote.engine.tally import Tally
from cenote.sql.pool import PoolUse


@dataclass(frozen=True, slots=True)
class Counted:
    """Counts of this process since it opened the store. Those of several processes may be added.

    Attributes:
        lag_ms: KV ack → SQL commit of what this process flushed.
        flush_ms, batch_rows: its flushes: how long they took, and how many rows they committed.
        flush_errors: tries to flush that failed, by the name of the error; the batch is tried again.
        tx_retries: transactions that PostgreSQL wanted to be run again (40001, 40P01), and were.
        differences, repairs: what its repairs found between KV and SQL (dry runs apart), and mended, by kind.
        out: by server, whether it counts as out (`outage_after_ms`).
        pool: how much of the pool is in use now; `pool_timeouts` calls got no connection in time.
        window_ms, backlog_max: the settings `flush.window_ms` and `flush.backlog_count_max`.
    """

    lag_ms: Tally
    flush_ms: Tally
    batch_rows: Tally
    flush_errors: dict[str, int]
    tx_retries: int
    differences: dict[str, int]
    repairs: dict[str, int]
    out: dict[str, bool]
    pool: PoolUse
    pool_timeouts: int
    window_ms: float
    backlog_max: int


def counted(machines: Machines) -> Counted:
    """What this process has counted so far."""
    core, flush = machines.core, machines.core.config.flush
    lag = machines.flusher.lag if machines.flusher else LagWindow(1, flush.window_ms)
    return Counted(
        lag_ms=lag.total(), flush_ms=core.counts.flush_tally, batch_rows=core.counts.batch_tally,
        flush_errors=dict(core.counts.flush_errors), tx_retries=core.db.retries,
        differences={kind.value: core.counts.differences[kind.value] for kind in Kind},
        repairs={kind.value: core.counts.repairs[kind.value] for kind in Kind},
        out={"nats": core.link.out, "postgresql": core.db.out}, pool=core.db.use(),
        pool_timeouts=core.db.timeouts, window_ms=flush.window_ms, backlog_max=flush.backlog_count_max,
    )  # fmt: skip
