"""L1's coherence: follow every write of the stream, and know when one was missed (I4; flow rule 10).

The stream's leader is authoritative for what was written; the republish feed only tells of it, at most once. Two
checks find what it did not tell, and either drops L1 and tells the watches:

- *a hole*: every stored message is republished, those of an atomic batch one by one, while refused writes, deletes of
  single messages, purges and expiry use up no sequence (seen on nats-server 2.15). So each event bears the sequence
  after the one before; only a purge beyond the stream's end skips numbers, which then counts as a hole.
- *a lost end*: at each probe the leader's last sequence of the probe before must have been shown.

Both count from a baseline that belongs to one connection (F-conn): after a reconnect L1 is not used before the leader
has been asked anew.

The members of an atomic batch come one by one, and change L1 one by one. What is to be seen together (flow rule 24) is
therefore not taken from L1 while the feed is within a batch, nor before it has shown all that is known of otherwise.
"""

import asyncio
import time
from collections.abc import Callable

from cenote import limits
from cenote.engine import entries
from cenote.engine.cache import Cache
from cenote.engine.epoch import Epochs
from cenote.errors import CenoteError, UnavailableError
from cenote.kv.atomic import MEMBER, is_last
from cenote.kv.message import Message, republished
from cenote.kv.stream import StateStream
from cenote.kv.watch import Feed
from cenote.model.entry import Stored
from cenote.naming import Names

Listener = Callable[[Message], None]


class Coherence:
    """What keeps one process's L1 and watches up with the stream.

    Attributes:
        listening: whether the feed is followed from a known sequence on; only then may L1 be asked.
        seen: the highest sequence that the feed has shown on this connection, or need not show.
        gaps: how often something was missed.
        within: the subject of the newest member of a batch of which the feed has not shown all; None outside of one.
        told: the highest sequence that a watch learnt of by a listing.
    """

    def __init__(
        self, stream: StateStream, names: Names, cache: Cache, epochs: Callable[[], Epochs], writer_id: str
    ) -> None:
        self._stream = stream
        self._names = names
        self._cache = cache
        self._epochs = epochs
        self._own_mark = f";{writer_id}.".encode("ascii")
        self.listening = False
        self.listeners: list[Listener] = []
        self.on_gap: list[Callable[[], None]] = []
        self.seen = 0
        self.gaps = 0
        self.within: str | None = None
        self.told = 0
        self.met: Callable[[str, int], object] | None = None
        """Told of every event, where followers answer reads (`engine/replicas.py`)."""
        self.on_listen: Callable[[], None] | None = None
        """Told when L1 begins to count on probes."""
        self._owed = 0
        self._until = 0.0
        self._feed: Feed | None = None
        self._lock = asyncio.Lock()

    def __bool__(self) -> bool:
        """Whether L1 has heard from the leader within the silence limit."""
        return time.monotonic() < self._until

    async def listen(self) -> None:
        """Begin to follow all writes, so that L1 may hold copies. A process that only writes never does."""
        async with self._lock:
            if self.listening:
                return
            if self._feed is None:  # an earlier try may have failed below
                self._feed = Feed(self._stream.link, self._names, self._event)
            # On one connection the server handles SUB before the request that follows it.
            generation = self._stream.link.generation
            info = await self._stream.info()
            if self._stream.link.generation != generation:
                raise UnavailableError("NATS was replaced while L1 began to listen", tier="DISTRIBUTED_KV")
            self.probed(info.last_seq)
            if self.on_listen is not None:
                self.on_listen()

    @property
    def following(self) -> bool:
        """Whether L1 or a watch follows the feed, or tries to again."""
        return self._feed is not None

    def close(self) -> None:
        """Follow no more."""
        if self._feed is not None:
            self._feed.close()

    def restart(self) -> None:
        """Another connection, or another stream: what was seen says nothing about it."""
        self.listening = False
        self.seen = self.told = 0
        self.gap()

    def probed(self, last_sequence: int) -> None:
        """The leader has said what it holds: everything that it held at the probe before must have been shown."""
        if self._feed is None:
            return
        if not self.listening:
            self.seen = max(self.seen, last_sequence)  # an event may have overtaken the answer
            self.listening = True
        elif last_sequence < self._owed:
            self.restart()  # the stream has lost its end
        elif self.seen < self._owed:
            self.seen = self._owed
            self.gap()
        self._owed = last_sequence
        self._until = time.monotonic() + limits.SILENCE_MS_MAX / 1000

    def covers(self, sequence: int) -> bool:
        """Whether the feed has shown everything up to there, and all that a watch has told of."""
        return self.seen >= sequence and self.seen >= self.told

    def tell(self, sequence: int) -> None:
        """A watch has told of an entry that it did not learn from the feed."""
        self.told = max(self.told, sequence)

    def gap(self) -> None:
        """Something may have been missed: drop L1, and let the watches catch up."""
        self.gaps += 1
        self.within = None
        self._cache.clear()
        for tell in self.on_gap:
            tell()

    def _event(self, subject: str, sequence: int, header: bytes, payload: bytes) -> None:
        if sequence == self.seen + 1:
            self.seen = sequence
        elif sequence > self.seen:
            self.seen = sequence
            if self.listening:
                self.gap()
        if header.find(MEMBER) >= 0:  # half the time of `in`, which tries its left side as an int first
            self.within = None if is_last(header) else subject
        if self.met is not None:
            self.met(subject, sequence)
        held = None
        if header.find(self._own_mark) >= 0:
            self._cache.own_event(subject, sequence)
        else:
            held = self._cache.event(subject)
        if held is not None and held.sequence >= sequence:
            held = None
        if held is not None or self.listeners:
            message = Message(subject, sequence, republished(header)[1], header, payload)
            if held is not None:
                self._push(held, message)
            for listener in self.listeners:
                listener(message)

    def _push(self, held: Stored, message: Message) -> None:
        try:
            stored = entries.from_message(message, self._epochs())
        except CenoteError:
            self._cache.forget(message.subject)  # a reader will meet the same entry and raise
            return
        if stored.version >= held.version and entries.believed(stored, message):
            self._cache.push(message.subject, stored)
