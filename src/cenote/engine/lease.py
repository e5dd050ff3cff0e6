"""Who flushes: a lease in KV, and a board that tells every process how flushing goes (I16; flow rules 8, 18, 19).

The lease decides who pulls, for speed alone; what keeps two flushers from harm is the fence in SQL. It needs no
clock: the holder renews its entry by compare-and-set, and whoever has watched the same sequence stand still for the
expiry time takes over by compare-and-set on that very sequence. The entry's body is the board: lag, backlog and
the moment when nothing was unflushed, readable without PostgreSQL.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from cenote import limits
from cenote.errors import CenoteError, OutcomeUnknownError, UnavailableError
from cenote.kv.errors import WrongSequence
from cenote.kv.link import Link
from cenote.kv.single import SingleEntry
from cenote.naming import QUERY_CACHE, Names

_LEASE_KEY = "=lease.flush"


@dataclass
class Board:
    """What the active flusher tells of itself; times are KV server times in ms. `sql_commits` and `sql_committed_us`
    name the last commit it has seen in PostgreSQL, `sql_commits_lost` counts those that were gone later."""

    holder: str = ""
    pid: int = 0
    host: str = ""
    renewed_ms: int = 0
    committed_ms: int = 0
    clean_ms: int = 0
    lag_ms_p50: float | None = None
    lag_ms_p95: float | None = None
    lag_ms_p99: float | None = None
    violations: int = 0
    flushed: int = 0
    delivered: int = 0
    commits: int = 0
    avg_flush_ms: float | None = None
    evicted: int = 0
    quarantined: int = 0
    unknown_formats: int = 0
    sql_down_since_ms: int | None = None
    sql_commits: int = 0
    sql_committed_us: int = 0
    sql_commits_lost: int = 0

    def inherit(self, before: "Board") -> None:
        """What a flusher must know of those before it: how far they had seen PostgreSQL come (flow rule 5)."""
        self.sql_commits, self.sql_committed_us = before.sql_commits, before.sql_committed_us
        self.sql_commits_lost = before.sql_commits_lost

    def alive(self, now_ms: int) -> bool:
        """Whether the holder renewed it within twice the expiry time."""
        return now_ms - self.renewed_ms < 2 * limits.LEASE_EXPIRE_MS


class Lease:
    """The flusher's lease of one store, as one process sees it."""

    def __init__(self, link: Link, names: Names, holder: str) -> None:
        self._entry = SingleEntry(link, names, QUERY_CACHE, _LEASE_KEY)
        self._holder = holder
        self._board = Board()
        self._sequence = 0
        self._watched = 0
        self._watched_since = time.monotonic()

    async def acquire(self, board: Board) -> bool:
        """Try once: take a free or expired lease. Call it every `limits.LEASE_RENEW_MS`."""
        held = await self._entry.read()
        if held is None:
            return await self._claim(0, board)
        if held.sequence != self._watched:
            self._watched, self._watched_since = held.sequence, time.monotonic()
        idle_ms = (time.monotonic() - self._watched_since) * 1000
        before = _parse(held.payload)
        if before.holder in ("", self._holder) or idle_ms >= limits.LEASE_EXPIRE_MS:
            board.inherit(before)
            return await self._claim(held.sequence, board)
        return False

    async def renew(self, board: Board) -> bool:
        """Write the board over our own entry; False when somebody else has taken over."""
        return await self._claim(self._sequence, board)

    async def release(self) -> None:
        """Let the next one take over at once; how far we came stays on the board, for lag grows from there (I8)."""
        try:
            await self._entry.write(_dump(replace(self._board, holder="")), expected=self._sequence)
        except (CenoteError, TimeoutError):
            return  # it expires by itself

    async def read(self) -> Board | None:
        """The board, whoever holds the lease; None when nobody ever flushed."""
        held = await self._entry.read()
        return None if held is None else _parse(held.payload)

    async def _claim(self, expected: int, board: Board) -> bool:
        self._board = board
        try:
            self._sequence = await self._entry.write(_dump(board), expected=expected)
        except WrongSequence:
            return False
        except OutcomeUnknownError as error:
            raise UnavailableError(str(error)) from error
        return True


def _dump(board: Board) -> bytes:
    return json.dumps(asdict(board)).encode()


def _parse(payload: bytes) -> Board:
    known: dict[str, Any] = json.loads(payload or b"{}")
    return Board(**{name: known[name] for name in known if name in Board.__dataclass_fields__})
