"""Rules beside the main road, each a model of a few lines: two stores, a full KV, a blob, a format, a name."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from search import Model, Step, Violation

RULES = {
    "8": "a second stream is refused while the first one's lease lives",
    "17": "the last tenth of KV is for tombstones, clean copies stop earlier, and a read never fails for a copy",
    "19": "lag counts from the last commit that advanced SQL",
    "20": "a large value is committed to its table before the entry that names it is published",
    "22": "an entry of an unknown format is offered again later, it is not poison",
    "23": "names are registered beside the flush and cannot fail it",
    "25": "a listing reads KV before SQL",
    "lease": "who has watched a lease stand still takes it over by compare-and-set",
}
ALL = frozenset(RULES)
State = tuple[Any, ...]


class Aside(Model):
    """One of the functions below as a model."""

    def __init__(self, aside: "AsideScope", on: frozenset[str]) -> None:
        self.aside, self.on = aside, on

    def start(self) -> State:
        return self.aside.start

    def steps(self, world: State) -> Iterator[Step]:
        return self.aside.steps(world, self.aside.rule in self.on)

    def at_rest(self, world: State) -> None:
        if self.aside.rest and (wrong := self.aside.rest(world)):
            raise Violation(wrong)


class AsideScope(NamedTuple):
    """A start, what may happen (given whether the rule stands), and what must not be at rest."""

    rule: str
    start: State
    steps: Callable[[State, bool], Iterator[Step]]
    rest: Callable[[State], str | None] | None = None
    must: tuple[str, ...] = ()


def _demand(condition: object, invariant: str) -> None:
    if not condition:
        raise Violation(invariant)


def two_stores(s: State, rule: bool) -> Iterator[Step]:
    """Two NATS before one database; the state: owner of the newest epoch, its number, acked writes, rows, lease."""
    owner, epoch, acked, rows, lives = s
    for stream in (0, 1):
        if stream != owner and not (rule and lives) and epoch < 3:
            yield ("stream {} is opened, begins epoch {}", stream, epoch + 1), (stream, epoch + 1, acked, rows, lives)
        elif stream != owner and rule:
            yield ("stream {} is refused: the lease of the other one lives", stream), s
        if stream not in [w for w, _ in acked]:
            epoch_of = epoch if stream == owner else epoch - 1
            if stream == owner or epoch > 1:
                yield ("a put into stream {} is acked in epoch {}", stream, epoch_of), (
                    owner, epoch, acked | {(stream, epoch_of)}, rows, lives,
                )  # fmt: skip
    for write in acked - {rows}:
        _demand(rows is None or write[1] >= rows[1], "I1/I13: two streams fence each other's acked writes out")
        yield ("the flusher commits the write of stream {}", write[0]), (owner, epoch, acked, write, lives)


def full(s: State, rule: bool) -> Iterator[Step]:
    """Ten places; the state: dirty, flushed, tombstone stored, reads answered."""
    dirty, flushed, buried, answered = s
    used = dirty + flushed + buried
    if used < (9 if rule else 10):
        yield ("a put is accepted, {} of 10 places are used", used + 1), (dirty + 1, flushed, buried, answered)
    if dirty:
        yield ("the flusher commits one",), (dirty - 1, flushed + 1, buried, answered)
    if not buried:
        _demand(used < 10, "I13: KV is full of entries, and not even a delete can be accepted")
        yield ("a delete is accepted",), (dirty, flushed, 1, answered)
    if not answered:
        copied = used < (8 if rule else 10)
        yield ("a read is answered from SQL, a copy " + ("made" if copied else "not made"),), (
            dirty, flushed + copied, buried, 1,
        )  # fmt: skip


def lag(s: State, rule: bool) -> Iterator[Step]:
    """A hot key and a flusher that dies; the state: time, time of the last put, last commit, flusher lives."""
    now, put, committed, lives = s
    shown = now - (committed if rule else max(put, committed)) if put > committed else 0
    _demand(shown + 1 >= now - committed or put <= committed, "I8: SQL is behind for long, and the gauge shows nothing")
    if now < 5:
        yield ("time goes on, the key is put again",), (now + 1, now + 1, committed, lives)
    if lives:
        yield ("the flusher commits",), (now, put, put, lives)
        yield ("the flusher dies",), (now, put, committed, 0)


def blobs(s: State, rule: bool) -> Iterator[Step]:
    """Two steps of a large put, a crash between them, a reader; the state: bytes, entry, the writer's place."""
    stored, entry, place = s
    if place == 0:
        yield ("the bytes are committed",) if rule else ("the entry is published",), (rule, not rule, 1)
    if place == 1:
        yield ("the entry is published",) if rule else ("the bytes are committed",), (True, True, 2)
        yield ("the writer is killed",), (stored, entry, 3)
    if entry:
        _demand(stored, "I1: an entry names bytes that nobody has")
        yield ("a reader gets the value",), s


def formats(s: State, rule: bool) -> Iterator[Step]:
    """A new writer, an old flusher, a new flusher later; the state: entry there, row, acked, new flusher runs."""
    entry, row, acked, newer = s
    if not newer:
        yield ("a flusher that knows the new format starts",), (entry, row, acked, True)
    if entry and not acked:
        if newer:
            yield ("the new flusher commits the entry",), (entry, "value", True, newer)
        yield ("the old flusher meets an unknown format",), (entry, row if rule else "dead letter", not rule, newer)
    if acked and entry:
        yield ("the entry is evicted",), (False, row, acked, newer)


def names(s: State, rule: bool) -> Iterator[Step]:
    """A name that is taken by another id; the state: row committed, tries to register."""
    row, tries = s
    if not row:
        if rule:
            yield ("the flush commits",), (True, tries)
        elif not tries:
            yield ("the flush and the registration fail together: the name is taken",), (False, 1)
    elif not tries:
        yield ("the registration fails: the name is taken; the row stands",), (row, 1)


def listing(s: State, rule: bool) -> Iterator[Step]:
    """A listing beside flush and eviction; the state: in KV, in SQL, steps read, seen."""
    kv, sql, read, seen = s
    if kv and not sql:
        yield ("the key is flushed",), (kv, True, read, seen)
    if kv and sql:
        yield ("the key is evicted",), (False, sql, read, seen)
    if read < 2:
        tier = ("KV", "SQL")[read] if rule else ("SQL", "KV")[read]
        yield ("the listing reads {}", tier), (kv, sql, read + 1, seen or (kv if tier == "KV" else sql))
    else:
        _demand(seen, "a live key is missing from a listing")


def lease(s: State, rule: bool) -> Iterator[Step]:
    """Two candidates; the state: holder by the entry, who believes to hold it, who lives. Two may believe."""
    holder, believers, alive = s
    for one in (0, 1):
        if one in alive and one != holder and (holder is None or rule):
            yield ("{} sees no renewal, takes the lease over", one), (one, believers | {one}, alive)
        if one in believers and one in alive and holder != one:
            yield ("{} renews and finds that it has lost the lease", one), (holder, believers - {one}, alive)
    if len(alive) == 2 and holder is not None:
        yield ("{} is killed", holder), (holder, believers, alive - {holder})
        if len(believers) == 2:
            yield ("both pull and flush for a while",), s


NONE: frozenset[Any] = frozenset()
ASIDES: dict[str, AsideScope] = {
    "two-stores": AsideScope("8", (0, 1, NONE, None, True), two_stores, must=("is refused", "commits")),
    "full": AsideScope("17", (0, 0, 0, 0), full, must=("a copy not made", "a delete is accepted")),
    "lag": AsideScope("19", (0, 0, 0, 1), lag, must=("dies", "commits")),
    "blobs": AsideScope("20", (False, False, 0), blobs, must=("is killed", "gets the value")),
    "formats": AsideScope(
        "22", (True, None, False, False), formats,
        lambda s: None if s[1] == "value" else "I1/I17: an old flusher has thrown a new value away",
        ("unknown format",),
    ),
    "names": AsideScope(
        "23", (False, 0), names, lambda s: None if s[0] else "I13: one name stops the flush", ("stands",)
    ),
    "listing": AsideScope("25", (True, False, 0, False), listing, must=("is evicted",)),
    "lease": AsideScope(
        "lease", (0, frozenset({0}), frozenset({0, 1})), lease,
        lambda s: None if s[0] in s[2] else "I16: the holder of the lease is dead, and nobody ever flushes again",
        ("takes the lease over", "both pull and flush"),
    ),
}  # fmt: skip
