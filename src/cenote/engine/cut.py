"""A consistent cut: what one agent, or several, held at one moment of the stream (I9; flow rule 13, decision 0007).

A listing of the stream in the order of its sequences that ends when the server has met the end shows, of each key, what
KV held at that very moment: had a key been overwritten after the listing passed it, the newer entry would lie ahead of
the listing, which would not have ended before it. So such a listing is a cut, whatever its length. What is added:

- The end may lie within an atomic batch, which the server stores message by message: then the listing goes on.
- What KV has evicted is in SQL, which is read next, whole: the newest version of a key counts, whoever shows it. What
  is written meanwhile, the listing goes on to show, for nothing younger than `EVICT_AGE_MIN_MS` is ever evicted: so it
  goes on at least every `CHECKPOINT_TAIL_MS_MAX`, by the clock of this process, from before SQL was first asked until
  the end. A process that was stopped for longer finds that out, and cuts again.
- A delta begins behind its parent's cut. When that is younger than the minimum age, SQL need not be asked at all.
- One connection, one epoch and one start of the server from the beginning to the end (F-conn, rules 3 and 4).
- In a cluster followers lag behind: that there is nothing more is confirmed by the leader.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple
from uuid import UUID

from cenote import limits, points
from cenote.engine import entries
from cenote.engine.blobs import reference_id
from cenote.engine.core import Core, reading
from cenote.engine.waiting import until_mended
from cenote.errors import CodecError, UnavailableError
from cenote.kv.atomic import MEMBER, is_last
from cenote.kv.message import Message
from cenote.model import key as keys
from cenote.model.entry import Stored, Version
from cenote.model.kept import Kept, Packer
from cenote.sql.checkpoints import CheckpointTable, NewerRow

_PAUSE_S = 0.002
_LOOK_MESSAGES = 500  # after so many the clock is looked at
BEFORE_ALL = Version(0, 0)


class CutAgain(UnavailableError):
    """What was read does not make a cut; another attempt may."""


class Share:
    """One agent's part of a cut, gathered in the order in which it is found. Values go into parts at once; what stays
    in memory are the keys with their versions.

    Args:
        agent: whose.
        after: what is not newer than this is left out; `BEFORE_ALL`: everything is taken.
        since_s: `time.monotonic()` before the cut that `after` is of was begun; None: SQL has to be asked.
        spill: awaited now and then: may take `packer.parts` away.
    """

    def __init__(
        self, agent: keys.AgentRef, after: Version, since_s: float | None, spill: Callable[[], Awaitable[None]]
    ) -> None:
        self.agent = agent
        self.after = after
        self.since_s = since_s
        self.spill = spill
        self.packer = Packer()
        self.end = after.revision
        self.newest = BEFORE_ALL
        self.blobs: list[UUID] = []
        self.open_ms: int | None = None  # the newest message begins or continues a batch; its server time
        self._known: dict[str, Version] = {}
        self._gone: set[str] = set()

    @property
    def changed(self) -> int:
        """Keys with a value that were found."""
        return len(self._known) - len(self._gone)

    @property
    def removed(self) -> int:
        """Keys that were found to be deleted."""
        return len(self._gone)

    def wants(self, row: NewerRow) -> bool:
        """Whether nothing as new was found of this key."""
        known = self._known.get(row.key)
        return known is None or known < (row.epoch, row.version)

    def meet(self, message: Message, stored: Stored | None, row_key: str) -> None:
        """What the stream shows next; None for what is not believed."""
        self.end = message.sequence
        inside = message.header.find(MEMBER) >= 0 and not is_last(message.header)
        self.open_ms = message.time_us // 1000 if inside else None
        if stored is not None:
            self.take(row_key, stored)

    def take(self, row_key: str, stored: Stored) -> None:
        """The key as a tier holds it, unless as new a version was found before."""
        version = stored.version
        known = self._known.get(row_key)
        if version <= self.after or (known is not None and known >= version):
            return
        self._known[row_key] = version
        self.newest = max(self.newest, version)
        if stored.deleted:
            self._gone.add(row_key)
            if known is None and self.after == BEFORE_ALL:
                return  # a base need not say what it does not hold
        else:
            self._gone.discard(row_key)
            if stored.codec == entries.BLOB:
                self.blobs.append(reference_id(stored))
        kept = Kept(
            "", stored.codec, stored.body, version, stored.written_us, stored.expires_ms, stored.deleted
        )  # fmt: skip
        self.packer.add_row(row_key, kept)


class Place(NamedTuple):
    """Where and when a cut was made: a position of the stream, the start of the server, its time."""

    version: Version
    incarnation: str
    at_ms: int


class Cut:
    """One attempt."""

    def __init__(self, core: Core, table: CheckpointTable, shares: Sequence[Share]) -> None:
        self._core = core
        self._table = table
        self._shares = shares
        self._filter = core.agent_filter(shares[0].agent) if len(shares) == 1 else core.stream.prefix + ">"
        self._done: dict[str, Share] = {}
        self._since_s: float | None = None  # until then everything is known to have been met
        self._own = 0

    async def take(self) -> Place:
        """Gather all shares, and say of which moment they are.

        Raises:
            CutAgain: they are of no one moment.
            UnavailableError: a tier does not answer.
        """
        core = self._core
        if core.mended != core.link.generation:
            await until_mended(core, core.config.kv.deadline_ms)
        begun = self._circumstances()
        for share in self._shares:
            await self._agent(share)
        if len(self._shares) > 1 or any(share.since_s is None for share in self._shares):
            await self._tail()
        while self._within_a_batch():
            await asyncio.sleep(_PAUSE_S)
            await self._tail()
        if points.armed:
            await points.hit("checkpoint.cut")
        if self._circumstances() != begun:
            raise CutAgain("NATS was restarted, or reconnected, while a checkpoint was cut", tier="DISTRIBUTED_KV")
        newest = (share.newest.revision for share in self._shares if share.newest.epoch == core.epochs.newest)
        position = max(self._own, *(share.end for share in self._shares), *newest)
        return Place(Version(core.epochs.newest, position), core.incarnation, core.link.server_now_ms())

    def _circumstances(self) -> tuple[object, ...]:
        core = self._core
        return core.link.generation, core.mended, core.epochs, core.incarnation

    async def _agent(self, share: Share) -> None:
        begun_s = time.monotonic()
        self._own = max(self._own, self._core.own_sequence)
        await self._scan(self._core.agent_filter(share.agent), {share.agent.token: share}, share.end + 1)
        if share.since_s is None:
            self._refer(time.monotonic())
            self._done[share.agent.token] = share
            await self._rows(share)
            return
        if (time.monotonic() - share.since_s) * 1000 > limits.CHECKPOINT_TAIL_MS_MAX:
            raise CutAgain("a checkpoint took so long that newer entries may have left NATS", tier="DISTRIBUTED_KV")
        self._refer(begun_s)
        self._done[share.agent.token] = share

    def _refer(self, moment_s: float) -> None:
        self._since_s = moment_s if self._since_s is None else min(self._since_s, moment_s)

    async def _scan(self, subjects: str, shares: dict[str, Share], first: int) -> None:
        """Meet everything from a sequence on, until the server has met the end."""
        core = self._core
        looks, last = 0, first - 1
        while True:
            async for message in core.live(subjects, last + 1):
                last = max(last, message.sequence)
                token, key_token = core.split(message.subject)
                share = shares.get(token)
                if share is None or message.sequence <= share.end:
                    continue
                share.meet(message, *self._read(message, key_token))
                looks += 1
                if looks % _LOOK_MESSAGES == 0:
                    await share.spill()
                    if shares is not self._done:
                        await self._tail_in_time()
            if core.replicas is None:
                break
            with reading():
                if await core.stream.leader_next(subjects, last + 1) is None:
                    break
        for share in shares.values():
            share.end = max(share.end, last)

    def _read(self, message: Message, key_token: str) -> tuple[Stored | None, str]:
        stored = entries.listed(message, self._core.epochs)
        try:
            row_key = keys.sql_key(keys.decode_token(key_token))
        except CodecError:
            return None, ""  # not a key that anybody can name
        return (stored if entries.believed(stored, message) else None), row_key

    async def _tail_in_time(self) -> None:
        if self._since_s is not None and (time.monotonic() - self._since_s) * 1000 > limits.CHECKPOINT_TAIL_MS:
            await self._tail()

    async def _tail(self) -> None:
        """Meet what has come since, before anything of it can have left KV."""
        begun_s = time.monotonic()
        self._own = max(self._own, self._core.own_sequence)
        await self._scan(self._filter, self._done, min(share.end for share in self._done.values()) + 1)
        if self._since_s is not None and (time.monotonic() - self._since_s) * 1000 > limits.CHECKPOINT_TAIL_MS_MAX:
            raise CutAgain("a checkpoint took so long that newer entries may have left NATS", tier="DISTRIBUTED_KV")
        self._since_s = begun_s

    def _within_a_batch(self) -> bool:
        """Whether the newest message of an agent is a member of a batch of which more is to come: all are stored at one
        go, so of an old one nothing more comes (its server was killed meanwhile)."""
        now_ms = self._core.link.server_now_ms()
        opened = [share.open_ms for share in self._shares if share.open_ms is not None]
        return any(now_ms - one < limits.EVICT_AGE_MIN_MS for one in opened)

    async def _rows(self, share: Share) -> None:
        """What SQL has newer than anything found."""
        after = ""
        while True:
            page = await self._table.newer(share.agent.id, after, *share.after, limits.CHECKPOINT_ROWS_PAGE)
            wanted: list[str] = []
            size = 0
            for row in page:
                if not share.wants(row):
                    continue
                if row.deleted:
                    share.take(row.key, _tombstone(row))
                    continue
                if wanted and size + row.size > limits.PAGE_BYTES_MAX:
                    await self._values(share, wanted)
                    wanted, size = [], 0
                wanted.append(row.key)
                size += row.size
            if wanted:
                await self._values(share, wanted)
            if points.armed:
                await points.hit("checkpoint.rows")
            if len(page) < limits.CHECKPOINT_ROWS_PAGE:
                return
            after = page[-1].key
            await self._tail_in_time()

    async def _values(self, share: Share, wanted: list[str]) -> None:
        for row in await self._core.table.read_many(share.agent.id, wanted):
            share.take(row.key, entries.from_row(row))
        await share.spill()
        await self._tail_in_time()


def _tombstone(row: NewerRow) -> Stored:
    version = Version(row.epoch, row.version)
    return Stored(version, 0, entries.NO_VALUE, b"", True, row.kv_time_us, None, True, 0, "")
