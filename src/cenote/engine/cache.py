"""L1: a bounded, coherent cache of stored entries in this process (I4, I5, I15; flow rule 10).

The KV stream is authoritative. Three things keep a copy here honest:

- *own writes* replace the copy before the call returns;
- *others' writes* arrive by the republish feed and replace the copy in place;
- *fills* (what a read brought) are admitted only when no event for the key, no gap and no epoch change came since the
  read began, and only when newer than what is here.

Instead of a set of keys being read, events bump one of 8,192 counters chosen by the key's hash: a fill whose counter
moved is not admitted. Two keys sharing a counter cost a needless refusal, never a stale fill.

Staleness bound: a copy is behind by the feed's delay; if an event was lost, until the next event shows the hole or, at
the end of the stream, for two probes (2 s). Without an answer of the leader for 3 s a copy is served, marked as stale
in its `Entry`, for at most `memory.ttl_s` since it was read.
"""

import time
from array import array
from collections import OrderedDict

import msgspec

from cenote.model.entry import Stored
from cenote.model.merging import is_merging

_COUNTERS = 1 << 13  # as plain numbers side by side, for every write bumps one: they stay in the processor's cache
_SLOT_OVERHEAD_BYTES = 400  # measured: Stored, version, subject text, dictionary slot


class Ticket(msgspec.Struct, frozen=True, gc=False):
    """What a read or a write notes before it begins, to be shown when it wants to install something."""

    counter: int
    events: int
    foreign: int
    clears: int


class Cache:
    """Least-recently-used copies by subject; also remembers tombstones, so that a deleted key stays deleted."""

    def __init__(self, entries_max: int, bytes_max: int, ttl_s: float) -> None:
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._ttl_s = ttl_s
        self._slots: OrderedDict[str, tuple[Stored, float]] = OrderedDict()
        self._bytes = 0
        self._events = array("Q", bytes(8 * _COUNTERS))
        self._foreign = array("Q", bytes(8 * _COUNTERS))
        self._clears = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def bytes(self) -> int:
        """Estimated memory held, in bytes."""
        return self._bytes

    def lookup(self, subject: str) -> Stored | None:
        """The copy of `subject`, a tombstone included, or None when there is none that is young enough."""
        slot = self._slots.get(subject)
        if slot is None:
            return None
        if slot[1] < time.monotonic():
            self._remove(subject)
            return None
        self._slots.move_to_end(subject)
        return slot[0]

    def peek(self, subject: str) -> Stored | None:
        """The same for those who only look: it counts for nothing."""
        slot = self._slots.get(subject)
        return None if slot is None or slot[1] < time.monotonic() else slot[0]

    def holds(self, subject: str, stored: Stored) -> bool:
        """Whether this very copy is still here: nothing has happened to its key since it was looked up."""
        slot = self._slots.get(subject)
        return slot is not None and slot[0] is stored

    def merging(self, subject: str) -> bool:
        """Whether the copy of `subject` is one of a value that a plain put must not replace. Of a large value only a
        reference is held here, and nothing is known."""
        slot = self._slots.get(subject)
        if slot is None:
            return False
        codec, body = slot[0].codec, slot[0].body
        if codec == "j" or codec == "r":
            return body.startswith(b'{"$') and is_merging(codec, body)  # the usual answer, cheaply
        return codec.endswith("z") and is_merging(codec, body)

    def ticket(self, subject: str) -> Ticket:
        """Begin a read or a write: note how many events the key's counter has seen, and how many by others."""
        counter = hash(subject) % _COUNTERS
        return Ticket(counter, self._events[counter], self._foreign[counter], self._clears)

    def fill(self, subject: str, stored: Stored, ticket: Ticket) -> bool:
        """Install what a read brought, if nothing happened since its ticket. Returns whether it was admitted."""
        slot = self._slots.get(subject)
        if self._clears != ticket.clears or self._events[ticket.counter] != ticket.events:
            if slot is not None and slot[0].version < stored.version:
                self._remove(subject)  # it missed an event: the caller is about to be shown something newer (I4)
            return False
        if slot is not None and slot[0].version >= stored.version:
            return False
        self._install(subject, stored)
        return True

    def own_write(self, subject: str, stored: Stored, ticket: Ticket) -> None:
        """Install what this process has just had acknowledged, unless somebody may have overtaken it: where no copy
        is held, an event by another process leaves no trace but its count."""
        self._events[ticket.counter] += 1
        slot = self._slots.get(subject)
        if self._clears != ticket.clears:
            self._remove(subject)  # acknowledged before a reconnect, it may be lost by now (F-conn)
        elif slot is None:
            if self._foreign[ticket.counter] == ticket.foreign:
                self._install(subject, stored)
        elif slot[0].version < stored.version:
            self._install(subject, stored)

    def own_event(self, subject: str, sequence: int) -> None:
        """Note the echo of an own write. An older copy goes: the write's acknowledgement installs the new one, and
        if nobody waits for that any more, the next read asks KV."""
        self._events[hash(subject) % _COUNTERS] += 1
        slot = self._slots.get(subject)
        if slot is not None and slot[0].sequence < sequence:
            self._remove(subject)

    def event(self, subject: str) -> Stored | None:
        """Note a write by another process; returns the copy here, which the caller replaces by `push` if older."""
        counter = hash(subject) % _COUNTERS
        self._events[counter] += 1
        self._foreign[counter] += 1
        slot = self._slots.get(subject)
        return None if slot is None else slot[0]

    def push(self, subject: str, stored: Stored) -> None:
        """Replace the copy of a key that is here by a newer one from the feed."""
        if subject in self._slots:
            self._install(subject, stored)

    def forget(self, subject: str) -> None:
        """Drop one key: the outcome of a write to it is unknown."""
        self._events[hash(subject) % _COUNTERS] += 1
        self._remove(subject)

    def forget_all(self, prefix: str) -> None:
        """Drop the copies of all keys whose subject begins so. They are true: nothing else need be known."""
        for subject in [one for one in self._slots if one.startswith(prefix)]:
            self._remove(subject)

    def clear(self) -> None:
        """Drop everything and refuse all fills under way: a gap, a reconnect or an epoch change."""
        self._clears += 1
        self._slots.clear()
        self._bytes = 0

    def _install(self, subject: str, stored: Stored) -> None:
        slots = self._slots
        if subject in slots:
            self._remove(subject)
        cost = len(stored.body) + len(subject) + _SLOT_OVERHEAD_BYTES
        if cost > self._bytes_max or not self._entries_max:
            return
        slots[subject] = (stored, time.monotonic() + self._ttl_s)
        self._bytes += cost
        while self._bytes > self._bytes_max or len(slots) > self._entries_max:
            oldest, (gone, _) = self._slots.popitem(last=False)
            self._bytes -= len(gone.body) + len(oldest) + _SLOT_OVERHEAD_BYTES

    def _remove(self, subject: str) -> None:
        slot = self._slots.pop(subject, None)
        if slot is not None:
            self._bytes -= len(slot[0].body) + len(subject) + _SLOT_OVERHEAD_BYTES
