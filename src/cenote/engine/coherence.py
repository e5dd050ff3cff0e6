"""L1's coherence: follow every write of the stream, and know when one was missed (I4; flow rule 10).

The stream's leader is authoritative for what was written; the republish feed only tells of it, at most once. What the
feed has shown is compared with the leader's last sequence at every probe; a difference drops L1 and tells the watches.
"""

import asyncio
import time
from collections.abc import Callable

from cenote import limits
from cenote.engine import entries
from cenote.engine.cache import Cache
from cenote.engine.epoch import Epochs
from cenote.errors import CenoteError
from cenote.kv.message import Message, republished
from cenote.kv.stream import StateStream
from cenote.kv.watch import Feed
from cenote.model.entry import Stored
from cenote.naming import Names

Listener = Callable[[Message], None]


class Coherence:
    """What keeps one process's L1 and watches up with the stream.

    Attributes:
        listening: whether the feed is followed; only then may L1 be asked.
        seen: the highest sequence that the feed has shown.
        gaps: how often something was missed.
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
            info = await self._stream.info()
            self.begin(info.last_seq)
            self._until = time.monotonic() + limits.SILENCE_MS_MAX / 1000
            self.listening = True

    def close(self) -> None:
        """Follow no more."""
        if self._feed is not None:
            self._feed.close()

    def begin(self, last_sequence: int) -> None:
        """Whatever came before `last_sequence` is not waited for."""
        self.seen = self._owed = last_sequence

    def probed(self, last_sequence: int) -> None:
        """The leader has said what it holds: everything that it held at the probe before must have been shown."""
        if self.seen < self._owed:
            self.gap()
            self.seen = self._owed
        self._owed = last_sequence
        self._until = time.monotonic() + limits.SILENCE_MS_MAX / 1000

    def gap(self) -> None:
        """Something may have been missed: drop L1, and let the watches catch up."""
        self.gaps += 1
        self._cache.clear()
        for tell in self.on_gap:
            tell()

    def _event(self, subject: str, sequence: int, header: bytes, payload: bytes) -> None:
        if sequence > self.seen:
            self.seen = sequence
        held = None
        if self._own_mark in header:
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
