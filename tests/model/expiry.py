"""Expiry (rules 21 and 12): a value with an end, two processes with clocks of their own, a sweeper, a slow flusher.

One key, put with an expiry; server time goes on. One user creates (put if absent), one reads. An expired entry counts
as a tombstone of its version, everywhere, by the server's clock; own clocks may be fast.
"""

from collections.abc import Iterator
from typing import NamedTuple

from search import Model, Step, Violation

RULES = {
    "21 clock": "expiry is judged by a lower bound of the server's clock, not by a client's own",
    "21 create": "a create builds on the expired entry by compare-and-set; it is not refused by it",
    "21 seen": "the sweeper marks a row deleted only at the version that it saw expired",
    "21 mark": "the sweeper marks, it does not DELETE: a slow flusher must meet the row's version",
    "21 hydrate": "a hydrated copy keeps the absolute expiry",
}
ALL = frozenset(RULES)
ENDS = 2  # server time at which the first value ends
LATEST = 4


class Value(NamedTuple):
    """An entry or a row: which write, until when (0: for ever), and whether it is marked deleted."""

    write: int
    ends: int
    deleted: bool = False


class State(NamedTuple):
    now: int
    last: int
    kv: Value | None
    sql: Value | None
    hand: Value | None  # what a flusher has in hand
    acked: int  # consumer: everything up to this write
    creator: tuple[str, int] | str  # "start" | ("base", seq) | "done" | "refused"
    sweeper: Value | None
    evictions: int
    gone: bool  # somebody was told that the first value is over


class Expiry(Model):
    """The first write ends; the creator's is for ever."""

    def __init__(self, on: frozenset[str]) -> None:
        self.on = on

    def start(self) -> State:
        return State(0, 1, Value(1, ENDS), None, None, 0, "start", None, 1, False)

    def _over(self, s: State, value: Value, *, skew: int = 0) -> bool:
        clock = s.now + (0 if "21 clock" in self.on else skew)
        return value.deleted or bool(value.ends and value.ends <= clock)

    def steps(self, s: State) -> Iterator[Step]:
        yield from self._create(s)
        yield from self._read(s)
        yield from self._flush(s)
        yield from self._sweep(s)
        if s.evictions and s.kv and s.sql and s.sql.write >= s.kv.write:
            yield ("k is evicted from KV",), s._replace(kv=None, evictions=0)
        if s.kv is None and s.sql and not self._over(s, s.sql):
            ends = s.sql.ends if "21 hydrate" in self.on else s.sql.ends and s.now + ENDS
            yield ("write {} is hydrated", s.sql.write), s._replace(kv=s.sql._replace(ends=ends))

    def faults(self, s: State) -> Iterator[Step]:
        if s.now < LATEST:
            yield ("time goes on to {}", s.now + 1), s._replace(now=s.now + 1)

    def _create(self, s: State) -> Iterator[Step]:
        found = s.kv or s.sql
        if s.creator == "start":
            if found and not self._over(s, found, skew=1):
                yield ("create: k exists, ConflictError",), s._replace(creator="refused")
            elif found and "21 create" not in self.on and not found.deleted:
                yield ("create: KV still has the expired k, ConflictError",), s._replace(creator="refused")
                if found.ends <= s.now:
                    raise Violation("I16: an expired key can never be created again")
            else:
                yield ("create: k is absent or over",), s._replace(creator=("base", found.write if found else 0))
        elif isinstance(s.creator, tuple):
            if found and not found.deleted and (not found.ends or found.ends > s.now):
                raise Violation(f"I12: create overwrites write {found.write}, which lives until {found.ends}")
            seq = s.last + 1
            after = s._replace(kv=Value(seq, 0), last=seq, creator="done")
            yield ("create stores k@{} over the expired one", seq), after

    def _read(self, s: State) -> Iterator[Step]:
        found = s.kv or s.sql
        if found and found.write == 1:
            over = self._over(s, found, skew=1)
            if s.now >= ENDS and not over:
                raise Violation(f"an expired value is read: {found} at {s.now}")
            if s.gone and not self._over(s, found):
                raise Violation("I4: somebody was told that the value is over, now it is read again")
            yield ("a read: write 1 is {}", "over" if over else "alive"), s._replace(gone=s.gone or over)
        if s.last > 1 and not found:
            raise Violation("I1: the created value is in neither tier")
        if s.last > 1 and found and (found.deleted or found.write == 1):
            raise Violation(f"I1/I2: the created value is hidden by {found}")

    def _flush(self, s: State) -> Iterator[Step]:
        if s.kv and s.kv.write > s.acked and s.hand is None:
            yield ("the flusher takes k@{}", s.kv.write), s._replace(hand=s.kv)
        if s.hand:
            write = s.hand.write
            newer = s.sql is None or s.sql.write < write
            if newer and s.sql is None and s.acked >= write:
                raise Violation(f"I2: a slow flusher brings write {write} back after it was swept")
            sql = s.hand if newer else s.sql
            yield ("the flusher commits k@{}", write), s._replace(sql=sql, hand=None, acked=max(s.acked, write))
            if newer:
                yield ("another flusher commits k@{} first", write), s._replace(sql=sql, acked=max(s.acked, write))

    def _sweep(self, s: State) -> Iterator[Step]:
        if s.sweeper is None and s.sql and not s.sql.deleted and self._over(s, s.sql):
            yield ("the sweeper sees that write {} is over", s.sql.write), s._replace(sweeper=s.sql)
        elif s.sweeper and s.sql:
            same = s.sql.write == s.sweeper.write or "21 seen" not in self.on
            marked = s.sql._replace(deleted=True) if "21 mark" in self.on else None
            words = "the sweeper ends write {}" if same else "the sweeper leaves write {} alone"
            yield (words, s.sql.write), s._replace(sql=marked if same else s.sql, sweeper=None)

    def at_rest(self, s: State) -> None:
        if s.last > 1 and not (s.sql and s.sql.write == s.last and not s.sql.deleted):
            raise Violation(f"I1: at rest SQL has {s.sql}, the newest write is {s.last}")
