"""L1 and its feed (rule 10): one process that reads and writes, foreign writers, events that may get lost.

A read from L1 is never older than what the leader held one probe before the last one (the staleness bound), nor older
than what this process has shown or had acknowledged (I4, I5).
"""

from collections.abc import Iterator
from typing import NamedTuple

from search import Model, Step, Violation
from world import put_at

RULES = {
    "10 fill": "a fill is admitted only if nothing happened to its key since its read began",
    "10 own": "an own write counts as such an event",
    "10 overtaken": "an acked own write is installed only if no foreign event for the key came since it was sent",
    "10 newer": "a copy is replaced by a newer one only",
    "10 hole": "an event whose sequence does not follow the last one drops L1",
    "10 order": "answers come in the order in which the server did things (an assumption; not so on R3)",
    "10 refused": "an answer that is not admitted, but newer than the copy here, drops that copy",
    "10 shown": "L1 takes nothing that is older than what this process has shown or seen of the key",
    "10 ask": "a probe finds what the feed has not shown at its end",
}
ALL = frozenset(RULES)
PROPOSED = frozenset({"10 shown"})


class Fill(NamedTuple):
    """A direct get under way, or an own write that is stored and not yet acknowledged."""

    k: int
    version: int
    at: int  # the stream's last sequence when the server did it
    disturbed: bool = False


class State(NamedTuple):
    kv: tuple[int, ...]  # the leader's newest version of each key
    last: int
    feed: tuple[tuple[int, int, bool], ...]  # (sequence, key, own) on their way
    seen: int
    owed: int
    copies: tuple[int, ...]  # L1; 0: none
    read: Fill | None
    write: Fill | None
    proven: int
    shown: tuple[int, ...]
    writes: int
    losses: int


class Coherence(Model):
    """Two keys, a handful of writes, one lost event."""

    def __init__(self, on: frozenset[str], writes: int = 3, losses: int = 1) -> None:
        self.on, self.writes, self.losses = on, writes, losses

    def start(self) -> State:
        return State((0, 0), 0, (), 0, 0, (0, 0), None, None, 0, (0, 0), self.writes, self.losses)

    def steps(self, s: State) -> Iterator[Step]:
        yield from self._writes(s)
        yield from self._reads(s)
        yield from self._feed(s)
        if s.seen < s.owed and "10 ask" in self.on:
            dropped = self._drop(s)._replace(seen=s.owed, proven=s.owed, owed=s.last)
            yield ("the probe finds that events up to {} were not all shown: L1 dropped", s.owed), dropped
        elif (s.proven, s.owed) != (s.owed, s.last) and (not s.feed or s.feed[0][0] > s.owed):
            yield ("a probe: the leader is at {}", s.last), s._replace(proven=s.owed, owed=s.last)

    def _drop(self, s: State) -> State:
        return s._replace(
            copies=(0,) * len(s.kv),
            read=s.read and s.read._replace(disturbed=True),
            write=s.write and s.write._replace(disturbed=True),
        )

    def _writes(self, s: State) -> Iterator[Step]:
        for k in range(len(s.kv)):
            n = s.last + 1
            stored = s._replace(kv=put_at(s.kv, k, n), last=n, writes=s.writes - 1)
            if s.writes:
                yield ("somebody puts k{}@{}", k, n), stored._replace(feed=(*s.feed, (n, k, False)))
            if s.writes and s.write is None:
                yield (
                    ("an own put of k{}@{} is stored", k, n),
                    stored._replace(feed=(*s.feed, (n, k, True)), write=Fill(k, n, n)),
                )
        if s.write:
            k, n, _, foreign = s.write
            held = s.copies[k]
            ok = held < n if held else not foreign
            ok = ok if "10 overtaken" in self.on or held else True
            ok = ok and not ("10 shown" in self.on and n < s.shown[k])
            read = s.read
            if read and read.k == k and "10 own" in self.on:
                read = read._replace(disturbed=True)
            copies = put_at(s.copies, k, n) if ok else s.copies
            shown = put_at(s.shown, k, max(n, s.shown[k]))
            yield (
                ("the own put of k{}@{} is acked", k, n),
                s._replace(write=None, copies=copies, read=read, shown=shown),
            )

    def _reads(self, s: State) -> Iterator[Step]:
        for k, held in enumerate(s.copies):
            if not held and not s.read and s.kv[k]:
                yield ("a read of k{} misses L1, KV answers @{}", k, s.kv[k]), s._replace(read=Fill(k, s.kv[k], s.last))
            if held:
                yield ("L1 forgets k{}", k), s._replace(copies=put_at(s.copies, k, 0))
                self._judge(s, k, held)
                yield (
                    ("a read of k{} = @{} from L1", k, held),
                    s._replace(shown=put_at(s.shown, k, max(held, s.shown[k]))),
                )
        if s.read and not ("10 order" in self.on and self._overtakes(s, s.read)):
            k, n, _, disturbed = s.read
            ok = not (disturbed and "10 fill" in self.on) and not (s.copies[k] >= n and "10 newer" in self.on)
            shown = put_at(s.shown, k, max(n, s.shown[k]))
            kept = n if ok else 0 if s.copies[k] < n and "10 refused" in self.on else s.copies[k]
            after = s._replace(read=None, shown=shown, copies=put_at(s.copies, k, kept))
            yield ("the fill k{}@{} is " + ("admitted" if ok else "refused"), k, n), after

    def _overtakes(self, s: State, read: Fill) -> bool:
        """Whether the answer would be handled before something that the server did earlier."""
        return bool((s.write and s.write.at <= read.at) or any(seq <= read.at for seq, _, _ in s.feed))

    def _judge(self, s: State, k: int, held: int) -> None:
        if held < s.shown[k]:
            raise Violation(f"I4/I5: k{k} goes back from @{s.shown[k]} to @{held}")
        if held < s.kv[k] <= s.proven:
            raise Violation(f"stale beyond the bound: L1 has k{k}@{held}, the leader @{s.kv[k]} for two probes")

    def _feed(self, s: State) -> Iterator[Step]:
        if not s.feed:
            return
        (seq, k, own), rest = s.feed[0], s.feed[1:]
        if s.losses:
            yield ("the event k{}@{} gets lost", k, seq), s._replace(feed=rest, losses=s.losses - 1)
        after, words = s._replace(feed=rest, seen=max(s.seen, seq)), "the event k{}@{} comes"
        if seq != s.seen + 1 and "10 hole" in self.on:
            after, words = self._drop(after), words + " after a hole: L1 dropped"
        if after.read and after.read.k == k:
            after = after._replace(read=after.read._replace(disturbed=True))
        if after.write and after.write.k == k and not own:
            after = after._replace(write=after.write._replace(disturbed=True))
        held = after.copies[k]
        if held and (seq > held or "10 newer" not in self.on):
            after = after._replace(copies=put_at(after.copies, k, 0 if own else seq))
        yield (words, k, seq), after
