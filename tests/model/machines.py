"""What the store does by itself: flush, evict, collect, mend. Each machine is a program that loops."""

from collections.abc import Iterator
from typing import Any

from clients import Clients
from programs import Program
from search import Violation
from world import NONE, Base, Change, Durable, Entry, Row, Sql, Stream, Version, World, put_at

MACHINES = {"flusher", "evictor", "collector", "mender"}


class Machines(Clients, Base):
    """The programs of flusher, evictor, collector and mender, and their operations."""

    # --- programs ---------------------------------------------------------------------------------------------

    def flusher(self) -> Program:
        """Two of them may pull at once: the lease is for speed, the fence is what keeps them from harm."""
        k, entry, seen = yield ("take",)
        if "ack last" not in self.on:
            yield ("ack", entry.seq, seen)
        verdict = yield ("commit", k, entry, seen)
        if verdict == "disagrees":
            from_t = yield ("look_at_leader", k, entry)
            if from_t is not None:
                yield ("begin_epoch", seen[1], from_t)
        if verdict == "below gc" and "F-gc" in self.on:
            floor = yield ("gc_floor", k, entry)
            if floor is not None:
                verdict = yield ("insert_above_all", k, entry, seen, floor)
        if verdict == "done" and "ack last" in self.on:
            yield ("ack", entry.seq, seen)
        return None

    def evictor(self) -> Program:
        floor, seen = yield ("record_floor",)
        if (yield ("floor_has_aged", seen)):
            below = yield ("decide", floor, seen)
            if below is not None:
                yield ("purge", below, seen)
        return None

    def collector(self) -> Program:
        yield ("collect",)
        return None

    def mender(self) -> Program:
        """After each start of the KV server, epoch change and database rewind: all live entries against SQL."""
        boot = yield ("notice",)
        life = yield ("renew", boot)
        if life is None:
            return None
        epoch, from_t = yield ("look_for_rewind", boot)
        if from_t is not None and not (yield ("begin_epoch", epoch, from_t)):
            return None
        seen = (boot, epoch + (from_t is not None), life)
        for k in range(len(self.scope.keys)):
            older = yield ("compare", k, boot)
            if older is not None:
                yield ("replace", k, *older, boot)
        yield ("announce", seen)
        return None

    # --- the flusher ------------------------------------------------------------------------------------------

    def take(self, world: World, who: str) -> Iterator[Change]:
        """A delivery, or one again: any message in hand may come again at any time (rule 18)."""
        if "F-gen" in self.on and world.sql.incarnation != world.boot:
            return
        durable, kv = world.durable, world.stream.kv
        first = min((e.seq for e in kv if e and e.seq > durable.delivered), default=None)
        seen = (world.boot, world.sql.newest, durable.gen)
        for k, entry in enumerate(kv):
            if entry and (entry.seq == first or ("18" in self.on and entry.seq in durable.pend)):
                again = "" if entry.seq == first else " again"
                held = Durable(durable.gen, max(durable.delivered, entry.seq), durable.pend | {entry.seq})
                yield (
                    ("{} gets {}@{}" + again, who, self.key(k), entry.seq),
                    world._replace(durable=held),
                    (k, entry, seen),
                )

    def _guarded(self, world: World, seen: tuple[int, int, int]) -> bool:
        """F-inc: the flush's epochs row is still the one that it fetched under."""
        return "F-inc" not in self.on or seen[:2] == (world.sql.incarnation, world.sql.newest)

    def commit(self, world: World, who: str, k: int, entry: Entry, seen: Any) -> Iterator[Change]:
        sql, key = world.sql, self.key(k)
        if entry.clean and not (world.life and "5 clean" in self.on and entry.version > NONE):
            yield ("{} skips the clean {}@{}", who, key, entry.seq), world, "done"
            return
        if not self._guarded(world, seen):
            yield ("{}: another epoch or server start, drops {}@{}", who, key, entry.seq), world, "dropped"
            return
        row, version = sql.rows[k], self.stamp(sql, entry)
        if self._disagrees(world, k, entry, version):
            yield ("{}: {}@{} and SQL disagree in sequence and time", who, key, entry.seq), world, "disagrees"
        elif entry.val >= 90 and "14" not in self.on:
            yield ("{}: SQL refuses {}@{}: a dead letter only", who, key, entry.seq), world, "done"
        elif row is None and "12" in self.on and version <= sql.gc:
            yield ("{}: {}@{} is below the collection floor", who, key, entry.seq), world, (
                "below gc" if "F-gc" in self.on else "done"
            )  # fmt: skip
        elif row and (row.epoch, row.version) >= version and "fence" in self.on:
            yield ("{}: {}@{} is fenced off by ({}, {})", who, key, entry.seq, row.epoch, row.version), world, "done"
        else:
            yield (
                ("{} commits {}@{} = v{} as {}", who, key, entry.seq, entry.val, version),
                self.write_row(world, k, entry),
                "done",
            )

    def _disagrees(self, world: World, k: int, entry: Entry, version: Version) -> bool:
        """Rule 3: within an epoch, sequence order is time order."""
        if "3" not in self.on or entry.clean:
            return False
        row, high = world.sql.rows[k], world.sql.high
        near = [(row.version, row.t)] if row and row.epoch == version[0] else []
        if high[0] == version[0]:
            near.append(high[1:])
        seq, t = entry.seq, entry.t
        return any((seq - s) * (t - u) < 0 or (seq == s) != (t == u) for s, u in near)

    def look_at_leader(self, world: World, who: str, k: int, entry: Entry) -> Iterator[Change]:
        key, live = self.key(k), world.stream.kv[k]
        if not (live and (live.seq, live.t) == (entry.seq, entry.t)):
            yield ("{}: the leader no longer has {}@{}: drops it", who, key, entry.seq), world, None
            return
        from_t = self._from_time(world, entry)
        if from_t is None or from_t in world.sql.epochs:
            yield ("{}: the epoch of {}@{} is known meanwhile", who, key, entry.seq), world, None
        else:
            yield ("{}: the leader has {}@{}: the stream went back in time", who, key, entry.seq), world, from_t

    def _from_time(self, world: World, entry: Entry) -> int | None:
        """The newest flushed time that is earlier than the message's while its sequence is not lower."""
        sql = world.sql
        flushed = [(row.version, row.t) for row in sql.rows if row and row.epoch == sql.newest]
        if sql.high[0] == sql.newest:
            flushed.append(sql.high[1:])
        return max((t for seq, t in flushed if t < entry.t and seq >= entry.seq), default=None)

    def begin_epoch(self, world: World, who: str, seen: int, from_t: int) -> Iterator[Change]:
        """Compare-and-set on the epochs row; rows flushed since then are stamped anew in the same transaction."""
        sql = world.sql
        if sql.newest != seen and "4 once" in self.on:
            yield ("{} loses the race for epoch {}", who, seen + 1), world, False
            return
        number = sql.newest + 1
        rows = tuple(row._replace(epoch=number) if row and row.t > from_t else row for row in sql.rows)
        high = (number, *sql.high[1:]) if sql.high[2] > from_t else sql.high
        epochs = (*sql.epochs, from_t)
        after = world._replace(sql=sql._replace(rows=rows, high=high, epochs=epochs), told=epochs)
        if "F-gen" in self.on:
            after = self.new_durable(after)
        yield ("{} begins epoch {} from t>{}", who, number, from_t), after, True

    def gc_floor(self, world: World, who: str, k: int, entry: Entry) -> Iterator[Change]:
        """F-gc: an entry below the floor that the leader still has is no ghost."""
        live = world.stream.kv[k]
        if live and (live.seq, live.t) == (entry.seq, entry.t):
            yield ("{}: {}@{} is live at the leader", who, self.key(k), entry.seq), world, world.sql.gc
        else:
            yield ("{}: {}@{} is gone at the leader, drops it", who, self.key(k), entry.seq), world, None

    def insert_above_all(
        self, world: World, who: str, k: int, entry: Entry, seen: Any, floor: Version
    ) -> Iterator[Change]:
        ok = self._guarded(world, seen) and world.sql.rows[k] is None and world.sql.gc == floor
        after = self.write_row(world, k, entry) if ok else world
        words = "inserts {}@{}" if ok else "leaves {}@{} for the next time"
        yield ("{} " + words, who, self.key(k), entry.seq), after, "done" if ok else "dropped"

    def ack(self, world: World, who: str, seq: int, seen: tuple[int, int, int]) -> Iterator[Change]:
        boot, _, gen = seen
        if gen != world.durable.gen or not self.same_connection(world, boot):
            yield ("{} acks @{}, which has no address any more", who, seq), world, None
            return
        durable = world.durable._replace(pend=world.durable.pend - {seq})
        yield ("{} acks @{}", who, seq), world._replace(durable=durable), None

    # --- the evictor ------------------------------------------------------------------------------------------

    def record_floor(self, world: World, who: str) -> Iterator[Change]:
        """Not while something is to be mended, and only the new durable's floor counts (F-gen)."""
        if not self.needs_mending(world) and world.durable.floor:
            seen = (world.boot, world.sql.newest, world.life, world.tick)
            yield ("{} records the floor {}", who, world.durable.floor), world, (world.durable.floor, seen)

    def floor_has_aged(self, world: World, who: str, seen: tuple[int, int, int, int]) -> Iterator[Change]:
        """F-aged: one minimum age later; then SQL is asked whether it is still the same."""
        if world.tick == seen[3] and "F-aged" in self.on:
            return
        same = (world.life == seen[2] or "5 asks" not in self.on) and (
            world.sql.newest == seen[1] or "2" not in self.on
        )
        yield ("{}'s floor has aged" + ("" if same else ", but SQL is another one"), who), world, same

    def decide(self, world: World, who: str, floor: int, seen: tuple[int, ...]) -> Iterator[Change]:
        below = min(floor, world.stream.last if "2" in self.on else floor) + 1
        if any(e and e.seq < below for e in world.stream.kv):
            yield ("{} decides to purge below {}", who, below), world, below
        else:
            yield ("{} finds nothing to purge", who), world, None

    def purge(self, world: World, who: str, below: int, seen: tuple[int, ...]) -> Iterator[Change]:
        """Sent once, on the connection that its numbers were read on (rule 2)."""
        if seen[0] != world.boot and "2" in self.on and who != "the wire":
            yield ("{} is on a new connection, purges nothing", who), world, None
            return
        kv = world.stream.kv
        for k, entry in enumerate(kv):
            row = world.sql.rows[k]
            only = entry and entry.val and not (row and row.t >= entry.written)
            if only and entry.seq < below and (entry.written, entry.val) == world.truth[k]:
                raise Violation(f"I11: PURGE below {below} removes the only copy of {self.key(k)}@{entry.seq}")
        left = tuple(None if e and e.seq < below else e for e in kv)
        old = world.durable
        durable = Durable(old.gen, max(old.delivered, below - 1), frozenset(s for s in old.pend if s >= below))
        stream = Stream(left, max(world.stream.last, below - 1))
        yield ("{} sends PURGE below {}", who, below), world._replace(stream=stream, durable=durable), None
        if who != "the wire" and (spent := self.spend(world, "stuck")):
            late = spent._replace(wire=(*world.wire, (world.boot, "purge", (below, seen))))
            yield ("{} sends PURGE below {}, which is stuck on its way", who, below), late, None

    # --- the collector ----------------------------------------------------------------------------------------

    def collect(self, world: World, who: str) -> Iterator[Change]:
        """A tombstone that is older than any fsync takes; a flusher may be frozen for longer."""
        sql = world.sql
        if "12 waits" in self.on and self.needs_mending(world):
            return
        for k, row in enumerate(sql.rows):
            if row and not row.val and row.t <= world.aged:
                gc = max(sql.gc, (row.epoch, row.version)) if "12" in self.on else sql.gc
                after = world._replace(sql=sql._replace(rows=put_at(sql.rows, k, None), gc=gc))
                yield ("{} removes the tombstone {} ({}, {})", who, self.key(k), row.epoch, row.version), after, None

    # --- the mender -------------------------------------------------------------------------------------------

    def needs_mending(self, world: World) -> bool:
        """Whether the KV server has started, an epoch has begun or SQL has gone back since somebody looked."""
        boot, epoch, life = world.mended
        return (
            (boot != world.boot and bool({"F-mend", "F-wait"} & self.on))
            or (epoch < world.sql.newest and "2" in self.on)
            or (life != world.life and "5" in self.on)
            or (world.sql.incarnation != world.boot and "F-gen" in self.on)
        )

    def notice(self, world: World, who: str) -> Iterator[Change]:
        if self.needs_mending(world):
            yield ("{} sees something to mend", who), world, world.boot

    def look_for_rewind(self, world: World, who: str, boot: int) -> Iterator[Change]:
        """After `renew`, or a frozen flusher commits a lost tail between this look and the comparison."""
        sql, last, from_t = world.sql, world.stream.last, None
        if sql.high[0] == sql.newest and last < sql.high[1]:
            from_t = sql.high[2]
        else:
            dirty = [e for e in world.stream.kv if e and not e.clean]
            from_t = max((t for e in dirty if (t := self._from_time(world, e)) is not None), default=None)
        found = "" if from_t is None else ", a new epoch is due"
        yield ("{} looks at the stream" + found, who), world, (sql.newest, from_t)

    def renew(self, world: World, who: str, boot: int) -> Iterator[Change]:
        """From now on no flush of an older server start commits (F-inc); then everything is delivered anew (F-gen)."""
        if boot != world.boot:
            yield ("{} is on a new connection, begins again", who), world, None
            return
        fresh = world.sql.incarnation != boot or world.mended[2] != world.life
        sql = world.sql._replace(incarnation=boot)
        if "F-start" in self.on and sql.incarnation != world.sql.incarnation:
            sql = sql._replace(epochs=(*sql.epochs, sql.high[2]))
        after = world._replace(sql=self._given_back(world, sql) if "5 epochs" in self.on else sql)
        after = after._replace(told=after.sql.epochs)
        if fresh and ("F-gen" in self.on or world.mended[2] != world.life):
            after = self.new_durable(after)
        yield ("{} begins a new durable for server start {}", who, boot), after, world.life

    def _given_back(self, world: World, sql: Sql) -> Sql:
        """Epochs that SQL lost when it went back; rows that were flushed since each began are stamped anew."""
        for begin in world.told[len(sql.epochs) :]:
            number = sql.newest + 1
            rows = tuple(row._replace(epoch=number) if row and row.t > begin else row for row in sql.rows)
            high = (number, *sql.high[1:]) if sql.high[2] > begin else sql.high
            sql = sql._replace(rows=rows, high=high, epochs=(*sql.epochs, begin))
        return sql

    def compare(self, world: World, who: str, k: int, boot: int) -> Iterator[Change]:
        entry, row = world.stream.kv[k], world.sql.rows[k]
        older = entry and row and ("F-mend" in self.on or world.sql.epochs)
        if older and "4 mends" in self.on:
            older = self.stamp(world.sql, entry) < (row.epoch, row.version)
        elif older:
            older = entry.seq < row.version
        if older:
            yield ("{}: {}@{} is older than SQL", who, self.key(k), entry.seq), world, (entry.seq, row)
        else:
            yield ("{}: {} is in order", who, self.key(k)), world, None

    def replace(self, world: World, who: str, k: int, seq: int, row: Row, boot: int) -> Iterator[Change]:
        """By a clean copy and compare-and-set, never by a delete."""
        entry = world.stream.kv[k]
        if "4 mends" not in self.on:
            if entry and entry.seq == seq and entry.written > row.t:
                raise Violation(f"I1: the mender deletes {self.key(k)}@{seq}, which is newer than SQL")
            kv = put_at(world.stream.kv, k, None) if entry and entry.seq == seq else world.stream.kv
            yield (
                ("{} deletes {}@{}", who, self.key(k), seq),
                world._replace(stream=Stream(kv, world.stream.last)),
                None,
            )
            return
        copy = Entry(0, 0, row.val, row.t, True, (row.epoch, row.version), True)
        after = self.publish(world, k, copy, seq) if self.same_connection(world, boot) else None
        words = "replaces {}@{} by what SQL has" if after else "cannot replace {}@{}"
        yield ("{} " + words, who, self.key(k), seq), after or world, None

    def announce(self, world: World, who: str, seen: tuple[int, int, int]) -> Iterator[Change]:
        yield ("{} announces server start {}, epoch {}", who, *seen[:2]), world._replace(mended=seen), None
