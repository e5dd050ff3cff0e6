"""Who flushes: a lease in KV, and a board that tells every process how flushing goes (I16; flow rules 8, 18, 19).

The lease decides who pulls, for speed alone; what keeps two flushers from harm is the fence in SQL. It needs no
clock: the holder renews its entry by compare-and-set, and whoever has watched the same sequence stand still for the
expiry time takes over by compare-and-set on that very sequence. The entry's body is the board: lag, backlog and
the moment when nothing was unflushed, readable without PostgreSQL.

Who waits for the lease hears each renewal as the message that it is, and asks the server only after a silence: hundreds
of processes that wait cost next to nothing. What is heard proves nothing; it only says when a try is worth it.
"""

import asyncio
import contextlib
import json
import random
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cenote import limits
from cenote.engine.ear import Ear
from cenote.errors import CenoteError, OutcomeUnknownError, UnavailableError
from cenote.kv.errors import NoSpace, WrongSequence
from cenote.kv.link import Link
from cenote.kv.single import SingleEntry
from cenote.naming import QUERY_CACHE, Names

PRIMARY_KEY = "=lease.flush"
COUNTED = (
    "flushed", "delivered", "commits", "evicted", "expired", "collected", "blobs_collected", "quarantined",
    "unknown_formats",
)  # fmt: skip
_SPREAD_S = 0.15  # many who hear the same silence do not all ask at the same instant
_dice = random.Random()  # its own: a program that seeds the global one must get what it expects


@dataclass
class Board:
    """What a flusher tells of itself; times are KV server times in ms. `sql_commits` and `sql_committed_us` name the
    last commit it has seen in PostgreSQL, `sql_commits_lost` counts those that were gone later; `active_max` is how
    many may flush beside each other, as its holder was told."""

    holder: str = ""
    left: bool = False
    pid: int = 0
    host: str = ""
    reads: int = 1  # the newest format of entries that the holder can flush
    active_max: int = 1
    renewed_ms: int = 0
    committed_ms: int = 0
    clean_ms: int = 0
    lag_ms_p50: float | None = None
    lag_ms_p95: float | None = None
    lag_ms_p99: float | None = None
    windows: dict[str, list[float | None]] = field(default_factory=dict)  # the fields of a `lag.Window`, by its name
    violations: int = 0
    flushed: int = 0
    delivered: int = 0
    commits: int = 0
    avg_flush_ms: float | None = None
    evicted: int = 0
    expired: int = 0
    collected: int = 0
    blobs_collected: int = 0
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

    def count(self, counts: Any) -> None:
        """Take over what its holder counts."""
        for name in COUNTED:
            setattr(self, name, getattr(counts, name))
        self.avg_flush_ms = round(counts.flush_ms / counts.commits, 3) if counts.commits else None

    def alive(self, now_ms: int) -> bool:
        """Whether the holder renewed it within twice the expiry time."""
        return now_ms - self.renewed_ms < 2 * limits.LEASE_EXPIRE_MS


class Lease:
    """A flusher's lease of one store, as one process sees it; the primary's, unless it is told another key. in_turns:
    those who wait hear its renewals by turns, see `Ear`."""

    def __init__(
        self, link: Link, names: Names, holder: str, key: str = PRIMARY_KEY, *, in_turns: bool = False
    ) -> None:
        self._entry = SingleEntry(link, names, QUERY_CACHE, key)
        self._holder = holder
        self._board = Board()
        self._sequence = 0
        self._watched = 0
        self._watched_since = time.monotonic()
        self._heard = b""
        self._heard_at = float("-inf")
        self._ear = Ear(self._entry, self._hear, in_turns=in_turns)
        self._wake = asyncio.Event()
        self._free = self._away = False

    def listen(self) -> None:
        """Hear renewals from now on, so that `pause` can wait for their end."""
        self._ear.open()

    def close(self) -> None:
        """Hear nothing any more."""
        self._ear.close()

    @property
    def quiet(self) -> bool:
        """Whether nobody was heard to hold it lately."""
        silent_s = time.monotonic() - self._heard_at
        return silent_s * 1000 >= limits.LEASE_EXPIRE_MS or not _parse(self._heard).holder

    def _hear(self, _subject: bytes, _reply: bytes, _header: bytes, payload: bytes) -> None:
        holder = _parse(payload).holder
        if holder == self._holder:
            return  # what we hold ourselves, or held until now, need not be waited for
        away = self._away
        self._heard, self._heard_at = payload, time.monotonic()
        self._free = not holder
        if self._free or away:
            self._wake.set()

    async def pause(self) -> None:
        """Wait until a try is worth it: `limits.LEASE_RENEW_MS`, and on for as long as renewals are heard, or others
        hear them."""
        wait_s = limits.LEASE_RENEW_MS / 1000
        while wait_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            self._wake.clear()
            if self._free:
                self._free = False
                await asyncio.sleep(_dice.random() * self._spread_s())
                return
            wait_s = self._pause_s()

    def _pause_s(self) -> float:
        silent_s = time.monotonic() - self._heard_at
        away_s = self._ear.away_s(silent_s)
        self._away = away_s > 0
        left_s = limits.LEASE_EXPIRE_MS / 1000 - silent_s
        return away_s or (left_s + _dice.random() * _SPREAD_S if left_s > 0 else 0)

    def _spread_s(self) -> float:
        """Who leaves for good is followed at once. After a shift that failed, one of many tries, a little later: what
        made it fail may make the others fail, and a lease that is free must not be fought over without a pause."""
        return _SPREAD_S / 3 if _parse(self._heard).left else 2 * limits.LEASE_RENEW_MS / 1000

    async def acquire(self, board: Board) -> bool:
        """Try once: take a free or expired lease. Call it again after `pause`."""
        held = await self._entry.read()
        if held is None:
            return await self._claim(0, board)
        if held.sequence != self._watched:
            self._watched = held.sequence
            self._watched_since = self._heard_at if held.payload == self._heard else time.monotonic()
        idle_ms = (time.monotonic() - self._watched_since) * 1000
        before = _parse(held.payload)
        if before.holder in ("", self._holder) or idle_ms >= limits.LEASE_EXPIRE_MS:
            board.inherit(before)
            return await self._claim(held.sequence, board)
        return False

    async def renew(self, board: Board) -> bool:
        """Write the board over our own entry; False when somebody else has taken over."""
        return await self._claim(self._sequence, board)

    async def release(self, *, leaving: bool = False) -> None:
        """Let the next one take over, at once if we leave for good; how far we came stays on the board, for lag grows
        from there (I8)."""
        try:
            await self._entry.write(_dump(replace(self._board, holder="", left=leaving)), expected=self._sequence)
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
        except NoSpace:  # nobody else can take it either, and only a flusher can make room: it goes on (flow rule 17)
            held = await self._entry.read()
            return held is not None and held.sequence == expected == self._sequence
        except OutcomeUnknownError as error:
            raise UnavailableError(str(error)) from error
        return True


def _dump(board: Board) -> bytes:
    return json.dumps(asdict(board)).encode()


def _parse(payload: bytes) -> Board:
    known: dict[str, Any] = json.loads(payload or b"{}")
    return Board(**{name: known[name] for name in known if name in Board.__dataclass_fields__})
