"""How full KV is, how much waits for SQL, and which writes are still taken (I15; flow rule 17).

The stream's leader and the flusher's durable are authoritative; this process looks once a second, and counts what it
writes itself since then, so a burst does not pass the bound before the next look. The bound of the backlog is thus
`flush.backlog_count_max`, and what other processes write within a second: below a tenth of either bound within five,
for two hundred that look each second cost more than what they write. Where room gets short, looks follow each other
quickly, so that nobody is refused for long on the word of an old one.

Deletes are never refused for fullness: they are what makes room. A durable that has just begun delivers everything
that is live once more; until it has been through, only what was written since it began counts as waiting for SQL.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from cenote.config import Config
from cenote.errors import BackpressureError, CenoteError
from cenote.kv.bucket import StreamInfo
from cenote.kv.consumer import ConsumerInfo
from cenote.kv.errors import NotSent
from cenote.kv.link import Link
from cenote.naming import QUERY_CACHE, Names

PRESSED_SHARE = 0.70  # above it eviction does not wait for `state.ttl_s`
BRIM_SHARE = 0.85  # above it no clean copies are made
FULL_SHARE = 0.90  # above it writes are refused; the rest is for tombstones
_ROOMY_SHARE = 0.10  # below it, of the bytes and of the backlog, there is no hurry to look again
_ENTRY_BYTES = 200  # subject, headers and framing of an entry, about
_LOOK_PAUSE_S = 0.02

log = logging.getLogger("cenote.engine")


def cry_subject(names: Names) -> str:
    """Where a process tells the flusher that the server had no room; a core message, for the server stores no more."""
    return names.republished(QUERY_CACHE) + "full"


class Begun(NamedTuple):
    """What had arrived of all that was admitted when a look began."""

    writes: int
    bytes: int


class Fullness:
    """What one process knows of it.

    Attributes:
        backlog: entries that no flusher has acknowledged.
        share: bytes of the stream, as a share of its limit.
    """

    def __init__(self, config: Config, link: Link, names: Names, look: Callable[[], Awaitable[None]]) -> None:
        self._link = link
        self._look = look
        self._cry_subject = cry_subject(names)
        self._count_max = config.flush.backlog_count_max
        self.backlog = 0
        self.share = 0.0
        self._dirty = 0
        self._bytes = 0
        self._bytes_full = math.inf
        self._admitted = self._admitted_bytes = 0
        self._counted = self._counted_bytes = 0  # of them, what is surely in the answer to the last look
        self._looking: asyncio.Task[None] | None = None
        self._seen: tuple[object, ...] = ()

    def close(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()

    def admit(self, size: int, *, deleting: bool) -> None:
        """Count one write of so many bytes. Raises BackpressureError, before anything is sent, if there is no room."""
        if not deleting:
            since, since_bytes = self._admitted - self._counted, self._admitted_bytes - self._counted_bytes
            room, room_bytes = self._count_max - self._dirty, self._bytes_full - self._bytes
            if since * 2 >= room or since_bytes * 2 > room_bytes:
                self._look_soon()
                if since >= room:
                    raise _behind(self._dirty + since)
                if since_bytes > room_bytes:
                    raise _full(max(self.share, FULL_SHARE))
        self._admitted += 1
        self._admitted_bytes += size + _ENTRY_BYTES

    def admit_all(self, sizes: Sequence[int]) -> None:
        """Count writes that are taken all or none; raises as `admit`, and counts none then."""
        since, since_bytes = self._admitted - self._counted, self._admitted_bytes - self._counted_bytes
        size = sum(sizes) + len(sizes) * _ENTRY_BYTES
        if since + len(sizes) > self._count_max - self._dirty:
            self._look_soon()
            raise _behind(self._dirty + since)
        if since_bytes + size > self._bytes_full - self._bytes:
            self._look_soon()
            raise _full(max(self.share, FULL_SHARE))
        self._admitted += len(sizes)
        self._admitted_bytes += size

    def refused(self) -> None:
        """The server itself had no room: look, and let the flusher know, whose view may be another."""
        if self._look_soon():
            with contextlib.suppress(NotSent):  # the next refusal tells it again
                self._link.send(self._cry_subject, b"", b"")

    def begin(self) -> Begun:
        """To be called before the leader is asked."""
        since, since_bytes = self._admitted - self._counted, self._admitted_bytes - self._counted_bytes
        on_the_way = min(since, self._link.in_flight)
        return Begun(self._admitted - on_the_way, self._admitted_bytes - since_bytes * on_the_way // max(1, since))

    def unchanged(self, info: StreamInfo, durable: str | None) -> bool:
        """Whether nothing can have become dirty since the last look: then the durable need not be asked."""
        return not self.backlog and self._seen == (info.generation, info.created, info.last_seq, durable)

    def learn(self, info: StreamInfo, consumer: ConsumerInfo | None, durable: str | None, begun: Begun) -> None:
        """Take in what the leader and the durable have answered."""
        self.measure(info, begun)
        self._seen = (info.generation, info.created, info.last_seq, durable)
        if consumer is None:
            # Without a durable nobody can say what is flushed: everything may be dirty (I8). But where one was named,
            # there were flushes, and another one is about to begin.
            self.backlog = info.messages
            self._dirty = info.messages if durable is None else min(self._dirty, info.messages)
            return
        self.backlog = self._dirty = consumer.pending + consumer.ack_pending
        if consumer.floor < consumer.first_pass:
            self._dirty = min(self._dirty, max(0, info.last_seq - consumer.first_pass))

    def measure(self, info: StreamInfo, begun: Begun) -> None:
        """Take in the bytes, and what was admitted and is surely among them."""
        bytes_max = info.config["max_bytes"]
        self.share = info.bytes / bytes_max if bytes_max > 0 else 0.0
        self._bytes, self._bytes_full = info.bytes, bytes_max * FULL_SHARE if bytes_max > 0 else math.inf
        self._counted, self._counted_bytes = begun

    @property
    def roomy(self) -> bool:
        """Whether both bounds are far away."""
        return self.share < _ROOMY_SHARE and self._dirty < self._count_max * _ROOMY_SHARE

    def _look_soon(self) -> bool:
        """Look, unless that was begun a moment ago."""
        if self._looking is not None and not self._looking.done():
            return False
        self._looking = asyncio.create_task(self._look_once(), name="cenote-fullness")
        return True

    async def _look_once(self) -> None:
        try:
            await self._look()
        except (CenoteError, TimeoutError) as error:
            log.debug("cannot learn how full KV is: %s", error)
        await asyncio.sleep(_LOOK_PAUSE_S)


def _behind(count: int) -> BackpressureError:
    return BackpressureError(
        f"{count} writes wait for PostgreSQL (flush.backlog_count_max)", tier="RELATIONAL_DB",
        hint="see `cenote status`: is PostgreSQL up, and does any process flush?",
    )  # fmt: skip


def _full(share: float) -> BackpressureError:
    return BackpressureError(
        f"KV is {share:.0%} full: room is made as PostgreSQL catches up", tier="DISTRIBUTED_KV",
        hint="try again in some seconds; see `cenote status`; raise kv.bytes_max if this is the normal load",
    )  # fmt: skip
