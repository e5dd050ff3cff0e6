"""Who hears the renewals of a lease: of a few who wait for it everyone, of hundreds in turns (I16).

Each renewal that two hundred processes hear wakes two hundred processes, which costs more than all else that they do
while they are idle. So those who wait on one server share a queue group, in which each renewal comes to one of them, by
chance: it listens to every renewal for the next ten seconds, as an *heir* of the lease. Of two hundred that wait some
25 are heirs at any time, of four nearly always all, and nobody keeps a list. Who is no heir looks by itself after half
a minute or so: should all heirs fall together with the holder, the first of so many others looks soon.

A cluster hands the messages of a queue group to clients of the publisher's own server first, so that all heirs may fall
with it: there everyone hears everything.
"""

import random
import time

from cenote import limits
from cenote.kv.lane import Handler
from cenote.kv.link import Subscription
from cenote.kv.single import SingleEntry

_HEIR_S = 10.0
_AWAY_S = 30.0  # on average
_LOOK_S = 2 * limits.LEASE_EXPIRE_MS / 1000
_QUEUE = "heirs"
_dice = random.Random()  # its own: a program that seeds the global one must get what it expects


class Ear:
    """Subscribes to renewals for one process that waits."""

    def __init__(self, entry: SingleEntry, hear: Handler, *, in_turns: bool) -> None:
        self._entry = entry
        self._hear = hear
        self._in_turns = in_turns
        self._all: Subscription | None = None
        self._call: Subscription | None = None
        self._heir_until = self._back_at = 0.0

    def open(self) -> None:
        """Begin as an heir."""
        self._listen(_HEIR_S)
        if self._in_turns:
            self._call = self._entry.listen(self._called, _QUEUE)

    def close(self) -> None:
        """Hear nothing any more."""
        for subscription in (self._all, self._call):
            if subscription is not None:
                subscription.close()
        self._all = self._call = None

    def away_s(self, silent_s: float) -> float:
        """How long this process need not care for the lease, which was last heard of `silent_s` ago; 0: it is an heir,
        or it is time that it looks."""
        now = time.monotonic()
        if self._all is None:
            if now < self._back_at:
                return self._back_at - now
            self._listen(_LOOK_S)
        elif self._in_turns and now > self._heir_until and silent_s * 1000 < limits.LEASE_EXPIRE_MS / 2:
            self._all.close()
            self._all = None
            self._back_at = now + _dice.random() * 2 * _AWAY_S
        return max(0.0, self._back_at - now)

    def _listen(self, for_s: float) -> None:
        if self._all is None:
            self._all = self._entry.listen(self._hear)
        self._back_at = 0.0
        self._heir_until = max(self._heir_until, time.monotonic() + for_s)

    def _called(self, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        """Of all who wait this process alone was told."""
        self._listen(_HEIR_S)
        self._hear(subject, reply, header, payload)
