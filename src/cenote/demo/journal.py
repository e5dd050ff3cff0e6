"""What each worker promised itself: an intent before each write, an acknowledgement before its logic learns of it.

A record is one write(2) to a file opened with O_APPEND, so what a killed process has written stays written, and only
its last line can be torn. The journal knows nothing of the store, which is why it can judge it.
"""

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Place = tuple[str, str]  # agent and key
Parts = dict[str, int] | list[str]  # what is added: numbers by name, or elements, which are there once


def digest(value: Any) -> str:
    """A short fingerprint of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode("ascii"), digest_size=12).hexdigest()


class Journal:
    """The writing side: one per process."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._intents = 0

    def intent(self, agent: str, key: str, value: Any) -> int:
        """This write may happen from now on; the number to refer to it."""
        self._intents += 1
        self._append("intent", self._intents, agent, key, digest(value))
        return self._intents

    def acked(self, intent: int, version: tuple[int, int]) -> None:
        """The store has acknowledged it, as this version."""
        self._append("acked", intent, *version)

    def refused(self, intent: int) -> None:
        """The store has said that it did not happen."""
        self._append("refused", intent)

    def share(self, agent: str, key: str, parts: Parts) -> int:
        """This may be added from now on to a value that others change, too; the number to refer to it."""
        self._intents += 1
        self._append("share", self._intents, agent, key, parts)
        return self._intents

    def shared(self, intent: int) -> None:
        """The store has acknowledged it."""
        self._append("shared", intent)

    def tell(self, module: str, parts: dict[Place, str]) -> int:
        """A task may be done, and all this be said with it, from now on; the number to refer to it."""
        self._intents += 1
        self._append("tell", self._intents, module, [[*place, fingerprint] for place, fingerprint in parts.items()])
        return self._intents

    def told(self, intent: int) -> None:
        """The store has acknowledged it: all of it, and that the task is done."""
        self._append("told", intent)

    def event(self, name: str, agent: str, number: int) -> None:
        """Something to be counted."""
        self._append("event", name, agent, number)

    def _append(self, *record: Any) -> None:
        line = json.dumps(record).encode("ascii") + b"\n"
        if os.write(self._file, line) != len(line):
            raise OSError("the journal's disk is full")


class Promise(NamedTuple):
    """The newest acknowledged write of a key."""

    version: tuple[int, int]
    digest: str


@dataclass
class Book:
    """The reading side: all journals of a run, read as they grow.

    Attributes:
        acked: acknowledged writes, additions to shared values (`shares`) among them.
        promises: the newest acknowledged write of each key.
        doubts: writes of which the journals know no end: each may have happened or not.
        shared: what was added to each value that several processes change, by the name of the part.
        shares_in_doubt: additions of which the journals know no end.
        to_tell: what is said with the end of each module's task: fingerprints by kind and id.
        told: modules of which that was acknowledged.
        tells_in_doubt: modules of which the journals know no end.
        finished: agents whose survey is complete.
        events: how often each event happened, and the sum of their numbers under `name + "#"`.
    """

    acked: int = 0
    promises: dict[Place, Promise] = field(default_factory=dict)
    doubts: dict[tuple[Path, int], tuple[Place, str]] = field(default_factory=dict)
    shared: dict[Place, Counter[str]] = field(default_factory=dict)
    shares: int = 0
    shares_in_doubt: dict[tuple[Path, int], tuple[Place, Parts]] = field(default_factory=dict)
    to_tell: dict[str, dict[Place, str]] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    tells_in_doubt: dict[tuple[Path, int], str] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    finished: set[str] = field(default_factory=set)
    _taken: dict[Path, set[str]] = field(default_factory=dict)
    _read: dict[Path, int] = field(default_factory=dict)

    def read(self, path: Path) -> None:
        """Take in what was appended since; a torn last line waits for its end, which may never come."""
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            text = file.read()
        whole = text.rfind(b"\n") + 1
        self._read[path] = self._read.get(path, 0) + whole
        for line in text[:whole].splitlines():
            self._take(path, *json.loads(line))

    def in_hand(self, path: Path) -> set[str]:
        """The agents whose tasks the writer of this journal has taken, and not finished."""
        return set(self._taken.get(path, ()))

    def halfway(self, path: Path) -> list[str]:
        """Those of them that somebody has brought some way."""
        return [agent for agent in self.in_hand(path) if (agent, "progress") in self.promises]

    def _take(self, path: Path, kind: str, *rest: Any) -> None:
        if kind == "intent":
            number, agent, key, fingerprint = rest
            self.doubts[path, number] = ((agent, key), fingerprint)
        elif kind == "acked":
            number, epoch, revision = rest
            place, fingerprint = self.doubts.pop((path, number))
            promise = Promise((epoch, revision), fingerprint)
            self.promises[place] = max(promise, self.promises.get(place, promise))
            self.acked += 1
        elif kind == "refused":
            for doubts in (self.doubts, self.tells_in_doubt):
                doubts.pop((path, rest[0]), None)
        elif kind == "share":
            number, agent, key, parts = rest
            self.shares_in_doubt[path, number] = ((agent, key), parts)
        elif kind == "shared":
            place, parts = self.shares_in_doubt.pop((path, rest[0]))
            known, more = self.shared.get(place, Counter()), Counter(parts)
            self.shared[place] = known | more if isinstance(parts, list) else known + more
            self.shares += 1
            self.acked += 1
        elif kind == "tell":
            number, module, parts = rest
            self.to_tell[module] = {(what, name): fingerprint for what, name, fingerprint in parts}
            self.tells_in_doubt[path, number] = module
        elif kind == "told":
            self.told.add(self.tells_in_doubt.pop((path, rest[0])))
        else:
            self._event(path, *rest)

    def _event(self, path: Path, name: str, agent: str, number: int) -> None:
        self.events[name] += 1
        self.events[name + "#"] += number
        taken = self._taken.setdefault(path, set())
        if name == "taken":
            taken.add(agent)
        elif name in ("finished", "late"):
            taken.discard(agent)
        if name == "finished":
            self.finished.add(agent)
