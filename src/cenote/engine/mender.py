"""After a start of the KV server: compare what KV holds with SQL, and mend what is older (I1, I2; flow rule 4, F-gen).

A store that went back in time shows entries that SQL knows to be overtaken. Each is replaced by a clean copy of its row
under the condition that it is still the very entry that was compared, never by a delete: so a write of the new life is
never touched. Only what is no later than its row by the server's clock can be older; a lower version with a later time
is a write of another life, for which an epoch must begin first. Nothing is evicted before the comparison is done, and
reads wait for it (F-wait, `engine/waiting.py`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from uuid import UUID

from cenote import limits, points
from cenote.engine import entries, rewind
from cenote.engine.batch import agent_of
from cenote.engine.belonging import belongs
from cenote.engine.core import Core
from cenote.engine.epoch import MENDED_KEY
from cenote.engine.hydrator import Hydrator
from cenote.engine.incarnation import incarnation, mended_mark
from cenote.engine.lease import Lease
from cenote.engine.rewind import Rewound
from cenote.engine.waiting import announce_mended
from cenote.errors import CodecError, UnavailableError
from cenote.kv.bucket import StreamInfo
from cenote.kv.message import Message
from cenote.model import key as keys
from cenote.model.entry import Stored, Version
from cenote.sql.migrate import migrate
from cenote.sql.rows import Guard, HighWater, SqlVersion

log = logging.getLogger("cenote.engine")

_PAGE_KEYS = 1_000  # compared by one query
_SIDE_BY_SIDE = 32  # entries that are mended at a time

Place = tuple[UUID, str]


class Mender:
    """One comparison of KV with SQL, bound to the connection it began on."""

    def __init__(self, core: Core, high: HighWater | None) -> None:
        self._core = core
        self._high = high or HighWater(0, 0)
        self._hydrator = Hydrator(core)
        self._generation = core.link.generation
        self._at_once = asyncio.Semaphore(_SIDE_BY_SIDE)

    async def run(self) -> int:
        """Compare everything; the number of entries that were mended.

        Raises:
            Rewound: an entry belongs to a life of the stream for which no epoch has begun.
            UnavailableError: a server went away, or the connection is another one: begin anew.
        """
        core, mended = self._core, 0
        page: dict[str, Message] = {}
        async for message in core.live(core.stream.prefix + ">"):
            if message.sequence <= self._high.sequence and message.time_us > self._high.kv_time_us:
                await self._disagrees(message)
            page[message.subject] = message
            if len(page) >= _PAGE_KEYS:
                mended += await self._compare(page)
                page = {}
        mended += await self._compare(page)
        self._same_connection()
        if mended:
            log.warning("KV went back in time: %d entries were older than SQL and are replaced", mended)
        return mended

    def _place(self, subject: str) -> Place | None:
        token, key_token = self._core.split(subject)
        agent = agent_of(token)
        try:
            return None if agent is None else (agent.id, keys.sql_key(keys.decode_token(key_token)))
        except CodecError:
            return None  # our own entries, or foreign subjects: SQL has no row of them

    async def _compare(self, page: dict[str, Message]) -> int:
        """SQL compares; in KV's favour nothing more is looked at than an entry's version."""
        ours: list[Message] = []
        columns: list[tuple[UUID, str, int, int]] = []
        for subject, message in page.items():
            place = self._place(subject)
            if place is not None:
                ours.append(message)
                columns.append((*place, *entries.version_of(message, self._core.epochs)))
        if not ours:
            return 0
        behind = []
        for index, held in await self._core.table.newer(*zip(*columns, strict=True)):
            message = ours[index]
            if await self._is_behind(entries.listed(message, self._core.epochs), message, held):
                behind.append(message.subject)
        return sum(await asyncio.gather(*(self._mend(subject) for subject in behind)))

    async def _is_behind(self, stored: Stored, message: Message, held: SqlVersion) -> bool:
        if stored.version >= Version(held.epoch, held.version):
            return False
        same_life = stored.version.epoch == held.epoch and not stored.clean
        if same_life and message.time_us > held.kv_time_us:
            await self._disagrees(message)
            return False
        return True

    async def _disagrees(self, message: Message) -> None:
        if await rewind.of_this_life(self._core, message.sequence, message.time_us, generation=self._generation):
            raise Rewound(self._core.epochs.newest, message.sequence, message.time_us)

    async def _mend(self, subject: str) -> bool:
        """Replace one entry, unless somebody else has done so or written it anew."""
        core = self._core
        token, key_token = core.split(subject)
        target = core.target(keys.decode_agent(token), keys.decode_token(key_token))
        async with self._at_once:
            while True:
                self._same_connection()
                t0_ms = core.link.server_now_ms()
                message = await core.stream.leader_get(target.subject)
                row = await core.table.read(target.agent.id, target.row_key)
                if message is None or row is None:
                    return False
                held = SqlVersion(row.epoch, row.version, row.kv_time_us)
                if not await self._is_behind(entries.listed(message, core.epochs), message, held):
                    return False
                if points.armed:
                    await points.hit("mend.compared")
                copy = await self._hydrator.install(
                    target.wire, entries.from_row(row), t0_ms=t0_ms, over=message.sequence, generation=self._generation
                )
                if copy is not None:
                    if points.armed:
                        await points.hit("mend.replaced")
                    return True

    def _same_connection(self) -> None:
        if self._core.link.generation != self._generation or not self._core.link.connected:
            raise UnavailableError("the connection to NATS was replaced during the mending", tier="DISTRIBUTED_KV")


async def take_over(core: Core, epoch: int, start: str, seen_sequence: int, last_sequence: int) -> HighWater | None:
    """Bind all flushes from now on to this start of the KV server (F-inc); how far the epoch has been flushed.

    Args:
        core: the store.
        epoch: the newest one that this process knows.
        start: the server's incarnation.
        seen_sequence: the highest sequence that this process met before it asked for `last_sequence`.
        last_sequence: where the stream ends.

    Raises:
        Rewound: the stream ends below what was flushed or seen.
        SetupError: the schema is too new for this process (flow rule 22).
        UnavailableError: the epoch is another one by now; it has been learnt.
    """
    await migrate(core.db, "check")
    newest = await belongs(core.table, core.epochs, core.stream)
    if newest.epoch != epoch or not await core.table.set_incarnation(epoch, newest.incarnation or "", start):
        await rewind.publish(core)
        raise UnavailableError("the epoch or the server start is another one", tier="DISTRIBUTED_KV")
    if points.armed:
        await points.hit("mend.bound")
    high = await core.table.high_water(epoch)
    known = max(seen_sequence, high.sequence if high else 0)
    if last_sequence < known:
        # Bound to this start already, others may flush meanwhile, what was written since the stream was asked included.
        if newest.incarnation == start and (await core.stream.info()).last_seq >= known:
            return high
        raise Rewound(epoch, last_sequence + 1, None)
    return high


async def mend_once(
    core: Core, guard: Guard, info: StreamInfo, high: HighWater | None, renew: Callable[[], Awaitable[bool]]
) -> None:
    """Before a shift flushes or evicts: compare KV with SQL, unless that was done since this start of the server, and
    tell everybody. An embedded server does not come up before nothing can be lost, so there is nothing to compare.

    renew: keeps the lease meanwhile; False when it is lost.
    """
    if info.metadata.get(MENDED_KEY) == mended_mark(guard.epoch, guard.incarnation):
        return
    if not core.owned:
        mending = asyncio.create_task(Mender(core, high).run())
        try:
            while not mending.done():
                if not await renew():
                    raise UnavailableError("another process has taken the lease")
                await asyncio.wait([mending], timeout=limits.LEASE_RENEW_MS / 1000)
            mending.result()
        finally:
            mending.cancel()
            await asyncio.gather(mending, return_exceptions=True)
    await announce_mended(core, guard.epoch, guard.incarnation, info.generation)


def volunteer(core: Core, lease: Lease) -> Callable[[], Awaitable[None]]:
    """What a process does that waits for a comparison (F-wait) while nobody flushes: it compares itself."""

    async def compare() -> None:
        board = await lease.read()
        if board is not None and board.holder and board.alive(core.now_ms()):
            return
        generation, epoch, seen = core.link.generation, core.epochs.newest, core.met_sequence
        info = await core.stream.info()
        start = incarnation(core.link, info)
        if not start or core.link.generation != generation:
            return
        try:
            high = await take_over(core, epoch, start, seen, info.last_seq)
            await Mender(core, high).run()
        except Rewound as rewound:
            await rewind.begin(core, rewound)
            return
        await announce_mended(core, epoch, start, generation)

    return compare
