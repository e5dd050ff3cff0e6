"""Bring what only SQL holds back into KV: create-only, marked clean, never flushed (I10; flow rules 6, 7 with F-mark
and F-t0).

A clean copy carries its original version and T0, a server time learnt before its KV read. Whatever the SQL read missed
was written after T0 and cannot have been evicted before T0 plus the minimum eviction age; so a copy stored later than
that is not believed by anybody, and replaced by compare-and-set on its own sequence.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from typing import NamedTuple

import msgspec

from cenote import limits, points
from cenote.engine import entries
from cenote.engine.core import Core, reading
from cenote.engine.entries import ABSENT, Target
from cenote.engine.fullness import BRIM_SHARE
from cenote.engine.waiting import until_mended
from cenote.errors import BackpressureError, OutcomeUnknownError, UnavailableError
from cenote.kv.errors import WrongSequence
from cenote.kv.mux import Reply
from cenote.kv.stream import sequence_of
from cenote.model import key as keys
from cenote.model.entry import Stored
from cenote.sql.rows import Row

_ROUNDS_MAX = 5


class Hydrated(NamedTuple):
    """What a hydration brought into KV: the number of keys, and the bytes of their values."""

    keys: int
    bytes: int


class Progress(NamedTuple):
    """How far a hydration has come: what it has brought so far, and the last key in the order of keys."""

    keys: int
    bytes: int
    after: str


class Hydrator:
    """Reads SQL on behalf of KV, for one key, for some, or for a whole agent."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._copies = 0

    async def believed(self, target: Target) -> tuple[Stored, int] | None:
        """The believed state of one key, present in KV under `.sequence`, and the connection's generation.

        What KV lacks is fetched from SQL and published clean first; a key nobody holds gets a clean tombstone.
        None when other writers were faster several times in a row.
        """
        core = self._core
        if core.mended != core.link.generation:
            await until_mended(core, core.config.kv.deadline_ms)  # the caller's own deadline is around it
        for _ in range(_ROUNDS_MAX):
            generation, t0_ms, started = core.link.generation, core.link.server_now_ms(), time.monotonic()
            message = await core.leader_message(target)
            mark: Stored | None = None
            if message is not None:
                stored = entries.from_message(message, core.epochs)
                if entries.believed(stored, message):
                    if not entries.nobody(stored):
                        return stored, generation
                    mark = stored
            row = await core.rows.read(target.agent.id, target.row_key)
            if mark is not None and row is None:
                return mark, generation
            known = ABSENT if row is None else entries.from_row(row)
            over = 0 if message is None else message.sequence
            copy = await self.install(target.wire, known, t0_ms=t0_ms, over=over, generation=generation)
            young = (time.monotonic() - started) * 1000 < limits.EVICT_AGE_MIN_MS
            if copy is not None and young:
                return copy, generation
        return None

    async def install(self, wire: bytes, stored: Stored, *, t0_ms: int, over: int, generation: int) -> Stored | None:
        """Publish a clean copy over the sequence `over` (0: nothing); what KV then holds, or None if someone was
        faster or the connection is another one by now (F-conn)."""
        core = self._core
        if points.armed:
            await points.hit("hydrate.read")
        if core.link.generation != generation:
            return None
        op = self._operation()
        try:
            sequence = sequence_of(await self._send(wire, stored, op, t0_ms, over))
        except WrongSequence:
            return None
        core.counts.hydrated += not stored.deleted
        if points.armed:
            await points.hit("hydrate.installed")
        return msgspec.structs.replace(stored, sequence=sequence, clean=True, t0_ms=t0_ms, op=op)

    def _operation(self) -> str:
        self._copies += 1
        return f"{self._core.writer_id}-h.{self._copies:x}"

    def _send(self, wire: bytes, stored: Stored, op: str, t0_ms: int, over: int) -> asyncio.Future[Reply]:
        core = self._core
        header = entries.clean_header(stored, t0_ms, op, core.format)
        body = b"" if stored.deleted else stored.body
        return core.stream.publish_nowait(wire, header, body, core.config.kv.request_timeout_ms, over)

    async def offer(self, wire: bytes, stored: Stored, *, t0_ms: int, over: int, generation: int) -> None:
        """Try to make a read's next one quicker; that it cannot be done never fails the read (flow rule 17)."""
        if self._core.fullness.share > BRIM_SHARE:
            return
        try:
            await self.install(wire, stored, t0_ms=t0_ms, over=over, generation=generation)
        except (UnavailableError, BackpressureError, OutcomeUnknownError):
            self._core.counts.hydrations_refused += 1

    async def pages(
        self, agent: keys.AgentRef, prefix: str = "", after: str | None = None
    ) -> AsyncGenerator[Progress, None]:
        """Bring the keys of an agent into KV, page by page in key order; what has been brought after each.

        Raises:
            UnavailableError: KV or SQL went away; the pages before stay hydrated, and a repeat resumes cheaply.
            BackpressureError: KV is nearly full.
        """
        core = self._core
        place = None if after is None else keys.sql_key(after)
        brought: Counter[str] = Counter()
        await core.rows.copied(agent.id)
        while True:
            generation, t0_ms = core.link.generation, core.link.server_now_ms()
            rows = await core.table.page(
                agent.id, place, keys.sql_key(prefix) if prefix else "", limits.HYDRATE_PAGE_KEYS, live_only=True
            )
            if not rows:
                return
            self._demand_room()
            brought += await self._rows(agent, rows, t0_ms, generation)
            place = rows[-1].key
            yield Progress(brought["keys"], brought["bytes"], keys.from_sql_key(place))

    async def some(self, agent: keys.AgentRef, wanted: Iterable[str]) -> Hydrated:
        """Bring these keys of an agent into KV. Raises as `pages`."""
        core = self._core
        places = sorted({core.target(agent, key).row_key for key in wanted})
        brought: Counter[str] = Counter()
        for start in range(0, len(places), limits.HYDRATE_PAGE_KEYS):
            generation, t0_ms = core.link.generation, core.link.server_now_ms()
            rows = await core.rows.read_many(agent.id, places[start : start + limits.HYDRATE_PAGE_KEYS])
            self._demand_room()
            brought += await self._rows(agent, rows, t0_ms, generation)
        return Hydrated(brought["keys"], brought["bytes"])

    def _demand_room(self) -> None:
        if self._core.fullness.share > BRIM_SHARE:
            raise BackpressureError(
                "KV is nearly full: no more clean copies are made", tier="DISTRIBUTED_KV",
                hint="reads are served from PostgreSQL meanwhile; raise kv.bytes_max if this is the normal load",
            )  # fmt: skip

    async def _rows(self, agent: keys.AgentRef, rows: list[Row], t0_ms: int, generation: int) -> Counter[str]:
        core = self._core
        brought: Counter[str] = Counter()
        now_ms = core.link.server_now_ms()
        window: list[tuple[bytes, Stored]] = []
        window_bytes = 0
        for row in rows:
            stored = entries.from_row(row)
            if entries.gone(stored, now_ms):
                continue
            window.append((core.target(agent, keys.from_sql_key(row.key)).wire, stored))
            window_bytes += len(stored.body)
            if window_bytes > limits.HYDRATE_WINDOW_BYTES:
                brought += await self._install_all(window, t0_ms, generation)
                window, window_bytes = [], 0
        return brought + await self._install_all(window, t0_ms, generation)

    async def _install_all(self, window: list[tuple[bytes, Stored]], t0_ms: int, generation: int) -> Counter[str]:
        """Publish clean copies at once: as many as the connection's write buffer surely takes. A task for each, with
        `install`, would cost as much as all the rest."""
        core = self._core
        brought: Counter[str] = Counter()
        answers: list[asyncio.Future[Reply]] = []
        try:
            for wire, stored in window:
                if points.armed:
                    await points.hit("hydrate.read")
                if core.link.generation != generation:
                    break
                answers.append(self._send(wire, stored, self._operation(), t0_ms, 0))
            # Answers come in the order of the questions: whoever awaits them in turn is woken up once for many.
            for (_, stored), answer in zip(window, answers, strict=False):
                if await _accepted(answer):
                    core.counts.hydrated += 1
                    brought["keys"] += 1
                    brought["bytes"] += len(stored.body)
                    if points.armed:
                        await points.hit("hydrate.installed")
        finally:
            for answer in answers:
                if not answer.cancel() and not answer.cancelled():
                    answer.exception()  # told to nobody: the first one was raised
        return brought


async def _accepted(answer: asyncio.Future[Reply]) -> bool:
    with reading():
        try:
            sequence_of(await answer)
        except WrongSequence:
            return False  # someone was faster
    return True
