"""Three replicas (rule 9): a follower that lags answers direct gets; the leader may change.

One key. The log is what a majority has stored; the follower has applied a prefix of it. One process reads and writes
through whichever server answers, and keeps one L1 copy that the leader's feed keeps up; others write, flush, evict.
"""

from collections.abc import Iterator
from typing import NamedTuple

from search import Label, Model, Step, Violation

RULES = {
    "9 absent": "'absent' from a follower is confirmed at the leader",
    "9 own": "an answer older than an own write is asked of the leader",
    "9 shown": "… and so is one older than what this process has shown or been told of by the feed",
    "9 base": "a compare-and-set builds on what the leader says",
    "9 majority": "an acknowledged write is on the disks of a majority, and a leader has all of these (an assumption)",
}
ALL = frozenset(RULES)


class Kept(NamedTuple):
    """What the log has of the key: a sequence, and the number of the write it holds."""

    seq: int
    write: int


GONE = Kept(0, 0)


class State(NamedTuple):
    log: tuple[Kept, ...]  # the key's state after each change, the last one is the leader's
    applied: int  # how much of it the follower has
    last: int
    told: int  # how much of it the feed has told
    sql: int  # the write that SQL has
    copy: int  # the write in L1, 0: none
    base: Kept | None  # what an update builds on
    tries: int
    shown: int  # the newest write that this process has shown or had acked
    event: int  # the highest sequence that the feed has shown of the key
    own: int  # the highest sequence of an own write
    proven: int
    writes: int
    evictions: int
    change: int


class Replicas(Model):
    """A handful of writes, one eviction, one change of the leader."""

    def __init__(self, on: frozenset[str], writes: int = 2, *, own_only: bool = False) -> None:
        self.on, self.writes, self.own_only = on, writes, own_only

    def start(self) -> State:
        return State((GONE, Kept(1, 1)), 1, 1, 2, 0, 0, None, 0, 0, 0, 0, 0, self.writes, 1, 1)

    def steps(self, s: State) -> Iterator[Step]:
        live = s.log[-1]
        seq, write = s.last + 1, self._number(s)
        if s.writes:
            stored = s._replace(log=(*s.log, Kept(seq, write)), last=seq, writes=s.writes - 1)
            yield ("somebody puts k@{}", seq), stored
            yield ("this process puts k@{}, acked", seq), stored._replace(shown=write, own=seq, copy=0)
        if live.write > s.sql:
            yield ("the flusher commits k@{}", live.seq), s._replace(sql=live.write)
        if live.seq and live.write <= s.sql and s.evictions:
            yield ("k@{} is evicted", live.seq), s._replace(log=(*s.log, GONE), evictions=0)
        if s.applied < len(s.log):
            yield ("the follower applies the next change",), s._replace(applied=s.applied + 1)
        if s.told < len(s.log):
            yield self._event(s)
        if s.told == len(s.log) and s.proven != live.write and live.write:
            yield ("a probe: all that the leader has was shown",), s._replace(proven=live.write)
        yield from self._reads(s)
        yield from self._update(s)

    def _number(self, s: State) -> int:
        """Of the next write; a sequence that is given out a second time is another write."""
        return s.last + 1 + (100 if s.change < 0 else 0)

    def _event(self, s: State) -> Step:
        kept = s.log[s.told]
        after = s._replace(told=s.told + 1)
        if kept.seq:
            after = after._replace(event=kept.seq, copy=kept.write if 0 < s.copy < kept.write else s.copy)
        return ("the feed tells of k@{}", kept.seq), after

    def _reads(self, s: State) -> Iterator[Step]:
        if s.copy:
            if s.copy < s.proven and not self.own_only:
                raise Violation(f"stale beyond the bound: L1 has write {s.copy}, all have known of {s.proven}")
            yield self._shows(s, s.copy, "L1")
            yield ("L1 forgets k",), s._replace(copy=0)
            return
        for name, answer in (("leader", s.log[-1]), ("follower", s.log[s.applied - 1])):
            behind = (
                (not answer.seq and "9 absent" in self.on)
                or (answer.seq < s.own and "9 own" in self.on)
                or (answer.seq < max(s.event, s.shown) and "9 shown" in self.on)
            )
            if behind:
                answer, name = s.log[-1], name + ", then the leader"
            yield self._shows(s, answer.write or s.sql, name)

    def _shows(self, s: State, write: int, name: str) -> tuple[Label, State]:
        if not write:
            raise Violation(f"I5: a key that somebody was told is stored is absent, says the {name}")
        if write < s.shown:
            raise Violation(f"I4/I5: write {s.shown} was shown or acked, now the {name} has an older one: {write}")
        return ("a read by the " + name + " shows write {}", write), s._replace(
            shown=s.shown if self.own_only else write, copy=write
        )

    def _update(self, s: State) -> Iterator[Step]:
        if s.base is None and s.writes and s.tries < 3:
            answers = [("leader", s.log[-1])]
            if "9 base" not in self.on:
                answers = [("follower", s.log[s.applied - 1])]
            for name, answer in answers:
                if answer.seq:
                    yield ("an update builds on k@{} as the {} has it", answer.seq, name), s._replace(base=answer)
        elif s.base is not None:
            live, seq, write = s.log[-1], s.last + 1, self._number(s)
            if live.seq != s.base.seq:
                if live.seq and s.base.seq < live.seq and s.tries == 2:
                    raise Violation("I16: an update is refused again and again, for it reads the same old entry")
                stuck = s.applied < len(s.log)
                yield (
                    ("its compare-and-set on @{} is refused", s.base.seq),
                    s._replace(base=None, tries=s.tries + 1 if stuck and "9 base" not in self.on else s.tries),
                )
            elif live.write != s.base.write:
                raise Violation(f"I12: lost update: @{seq} builds on write {s.base.write}, the newest is {live.write}")
            else:
                yield ("its compare-and-set on @{} is k@{}, acked", live.seq, seq), s._replace(
                    log=(*s.log, Kept(seq, write)), last=seq, base=None, shown=write, own=seq, copy=0, tries=0,
                    writes=max(0, s.writes - 1),
                )  # fmt: skip

    def faults(self, s: State) -> Iterator[Step]:
        if s.change < 1:
            return
        if "9 majority" in self.on:
            yield ("the leader changes; the new one has all that was acked",), s._replace(change=0, applied=len(s.log))
        elif s.applied < len(s.log):
            log = s.log[: s.applied]
            yield ("the leader changes; the new one has only {} of {} changes", s.applied, len(s.log)), s._replace(
                log=log, told=min(s.told, s.applied), last=max((kept.seq for kept in log), default=0), change=-1,
                sql=min(s.sql, max(kept.write for kept in log)), shown=0, own=0, event=0, proven=0, copy=0,
            )  # fmt: skip

    def at_rest(self, s: State) -> None:
        if s.sql < s.log[-1].write:
            raise Violation("I1: at rest SQL is behind KV")
