"""What users of a store do: put, delete, get, update, create, compare-and-set, durable(), flush().

Each verb is a program, with the steps that the engine takes between two awaits, followed by the operations it uses.
"""

from collections.abc import Iterator
from typing import Any

from programs import AGAIN, Program
from search import Violation
from world import NONE, Base, Change, Entry, Row, World, put_at

Truth = tuple[int, int]


class Clients(Base):
    """The programs of users, and their operations."""

    # --- programs ---------------------------------------------------------------------------------------------

    def put(self, k: int, val: int) -> Program:
        """Unconditional; repeated only after proof that it was not accepted (rule 16)."""
        answer = yield ("send", k, val, val)
        while answer is None:
            answer = yield ("look_for_own", k, val) if "16" in self.on else ("send", k, val, val)
        return None

    def delete(self, k: int, op: int) -> Program:
        yield ("send", k, 0, op)
        return None

    def put_durable(self, k: int, val: int) -> Program:
        """put, then receipt.durable()."""
        acked = yield ("send", k, val, val)
        if acked is not None:
            yield ("durable", k, *acked)
        return None

    def flush(self) -> Program:
        last, boot, promised = yield ("flush_begins",)
        if (yield ("floor_reaches", last, boot, promised)) == "done":
            return None
        above = yield ("live_above", last, boot)
        if above is not None:
            yield ("all_committed", above, boot, promised)
        return None

    def get(self, k: int) -> Program:
        """KV, then SQL; what only SQL holds is offered to KV, and nobody minds if that is refused."""
        absent = yield ("read", k)
        if absent is not None:
            tick, hole, boot, newest = absent
            row = yield ("read_row", k, newest)
            if row is not None and row.val:
                yield ("install", k, row, tick, hole, boot)
        return None

    def update(self, k: int, val: int, wanted: str = "any") -> Program:
        """Read, change, compare-and-set; again on conflict. `wanted` "absent": put(if_version=0)."""
        found = yield ("believed_base", k)
        if found[0] == "absent":
            _, tick, hole, boot = found
            row = yield ("base_row", k, wanted)
            live = row is not None and row.val
            if "6" not in self.on or (not live and "F-mark" not in self.on):
                basis = (row.t, row.val) if live else (0, 0)
                yield ("compare_and_set", k, val, hole, 0, boot, basis)
                return None
            found = yield ("install", k, row, tick, hole, boot)
            if found is None:
                return AGAIN
        _, seq, t, boot, basis = found
        if wanted == "absent" and basis[1]:
            return None  # ConflictError
        lost = False
        while True:
            answer = yield ("compare_and_set", k, val, seq, t, boot, basis)
            if answer == "done" or (answer == "refused" and not lost):
                return None if answer == "done" else AGAIN
            lost = lost or answer == "lost"
            answer = yield ("base_again", k, val, seq, t, lost)
            if answer in ("done", "unknown", "changed"):
                return AGAIN if answer == "changed" else None
            boot = answer

    def put_if_held(self, k: int, val: int) -> Program:
        """A version read some time ago, as `if_version`: it is compared with what the key is now."""
        held = yield ("hold_version", k)
        if held is None:
            return None
        version, basis = held
        now = yield ("compare_version", k, version, basis)
        if now is not None:
            seq, t, boot = now
            yield ("compare_and_set", k, val, seq, t, boot, basis)
        return None

    # --- writing ----------------------------------------------------------------------------------------------

    def send(self, world: World, who: str, k: int, val: int, op: int) -> Iterator[Change]:
        after = self.publish(world, k, Entry(0, 0, val, 0, op=op))
        assert after is not None
        seq, key = after.stream.last, self.key(k)
        yield ("{} puts {}@{} = v{}, acked", who, key, seq, val), after, (seq, after.now, world.boot)
        if who == "the wire":
            return
        if spent := self.spend(after, "lost"):
            yield ("{} puts {}@{} = v{}, but the answer is lost", who, key, seq, val), spent, None
        if spent := self.spend(world, "stuck"):
            late = spent._replace(wire=(*world.wire, (world.boot, "send", (k, val, op))))
            yield ("{} puts {} = v{}, which is stuck on its way; gives up", who, key, val), late, None

    def look_for_own(self, world: World, who: str, k: int, op: int) -> Iterator[Change]:
        entry = world.stream.kv[k]
        if entry and entry.op == op:
            yield (
                ("{} asks the leader for {}: its own write is there", who, self.key(k)),
                world,
                (entry.seq, entry.t, 0),
            )
        else:
            yield ("{} asks the leader for {}: the outcome is unknown", who, self.key(k)), world, "unknown"

    def compare_and_set(
        self, world: World, who: str, k: int, val: int, seq: int, t: int, boot: int, basis: Truth
    ) -> Iterator[Change]:
        key = self.key(k)
        if not self.same_connection(world, boot) and who != "the wire":
            yield ("{} is on a new connection, must read {} again", who, key), world, "moved"
            return
        after = self.publish(world, k, Entry(0, 0, val, 0, op=val), seq, basis)
        if after is None:
            yield ("{}: compare-and-set of {} on @{} is refused", who, key, seq), world, "refused"
            return
        at = after.stream.last
        yield ("{} puts {}@{} = v{} by compare-and-set on @{}, acked", who, key, at, val, seq), after, "done"
        if who == "the wire":
            return
        if spent := self.spend(after, "lost"):
            yield ("{} puts {}@{} = v{} on @{}, but the answer is lost", who, key, at, val, seq), spent, "lost"
        if spent := self.spend(world, "stuck"):
            late = spent._replace(wire=(*world.wire, (world.boot, "compare_and_set", (k, val, seq, t, boot, basis))))
            yield ("{} puts {} = v{} on @{}, which is stuck on its way", who, key, val, seq), late, "lost"

    def base_again(self, world: World, who: str, k: int, op: int, seq: int, t: int, lost: bool) -> Iterator[Change]:
        """F-conn: the entry built on is read again: sequence and server time must be the same."""
        if self._waits(world):
            return
        entry = world.stream.kv[k]
        key = self.key(k)
        if entry and entry.op == op:
            yield ("{} asks the leader for {}: its own write is there", who, key), world, "done"
        elif entry and (entry.seq, entry.t) == (seq, t):
            yield ("{} asks the leader: {}@{} is what it was", who, key, seq), world, world.boot
        else:
            yield ("{} asks the leader: {} is not what it was", who, key), world, "unknown" if lost else "changed"

    # --- reading ----------------------------------------------------------------------------------------------

    def _waits(self, world: World) -> bool:
        """F-wait: after a server start nobody reads from KV before a mender has announced it."""
        return "F-wait" in self.on and world.mended[0] != world.boot

    def read(self, world: World, who: str, k: int) -> Iterator[Change]:
        if self._waits(world):
            return
        held, key = world.stream.kv[k], self.key(k)
        entry = self.believed(held)
        if entry:
            self._judge_read(k, world.truth[k], entry.written, world)
            yield ("{} reads {}@{} = v{} from KV", who, key, entry.seq, entry.val), world, None
        else:
            answer = (world.tick, held.seq if held else 0, world.boot, world.truth[k])
            yield ("{} reads {}: " + ("a copy not to be believed" if held else "not in KV"), who, key), world, answer

    def read_row(self, world: World, who: str, k: int, newest: Truth) -> Iterator[Change]:
        row = world.sql.rows[k]
        self._judge_read(k, newest, row.t if row else 0, world)
        yield ("{} reads {} from SQL: {}", who, self.key(k), _shown(row)), world, row

    def _judge_read(self, k: int, newest: Truth, t: int, world: World) -> None:
        if self.scope.reads and t < newest[0] and not (t == 0 and 0 in (newest[1], world.truth[k][1])):
            raise Violation(f"I4/I10: a read of {self.key(k)} is older than v{newest[1]}, acked before it began")

    def believed_base(self, world: World, who: str, k: int) -> Iterator[Change]:
        if self._waits(world):
            return
        held, key = world.stream.kv[k], self.key(k)
        entry = self.believed(held)
        if entry:
            answer: tuple[Any, ...] = ("have", entry.seq, entry.t, world.boot, (entry.written, entry.val))
            yield ("{} will build on {}@{} = v{}", who, key, entry.seq, entry.val), world, answer
        else:
            answer = ("absent", world.tick, held.seq if held else 0, world.boot)
            yield ("{} wants to build on {}: not in KV", who, key), world, answer

    def base_row(self, world: World, who: str, k: int, wanted: str) -> Iterator[Change]:
        row = world.sql.rows[k]
        if wanted == "absent" and "6" not in self.on:
            row = None  # "absent in KV" is taken for "does not exist"
        yield ("{} reads {} from SQL: {}", who, self.key(k), _shown(row)), world, row

    def install(
        self, world: World, who: str, k: int, row: Row | None, tick: int, hole: int, boot: int
    ) -> Iterator[Change]:
        """Publish a clean copy (of nothing: a clean tombstone) over what was read; None unless it may be built on."""
        key = self.key(k)
        if not self.same_connection(world, boot) and who != "the wire":
            yield ("{} is on a new connection, hydrates {} no more", who, key), world, None
            return
        fresh = world.tick == tick
        copy = Entry(0, 0, 0, 0, clean=True, fresh=fresh)
        if row:
            copy = Entry(0, 0, row.val, row.t, True, (row.epoch, row.version), fresh)
        if "clean" not in self.on:
            copy = copy._replace(clean=False, op=-1 - len(world.done))
        basis = (copy.written, copy.val)
        after = self.publish(world, k, copy, hole if "create-only" in self.on else None)
        if after is None:
            yield ("{}: hydration of {} is refused, somebody was faster", who, key), world, None
            return
        seq = after.stream.last
        kept = ("have", seq, after.now, boot, basis) if fresh or "F-t0" not in self.on else None
        yield ("{} hydrates {}@{} = v{}", who, key, seq, copy.val), after, kept
        if who != "the wire" and (spent := self.spend(world, "stuck")):
            late = spent._replace(wire=(*world.wire, (world.boot, "install", (k, row, tick, hole, boot))))
            yield ("{} hydrates {} = v{}, which is stuck on its way; gives up", who, key, copy.val), late, None

    def hold_version(self, world: World, who: str, k: int) -> Iterator[Change]:
        entry = self.believed(world.stream.kv[k])
        if self._waits(world):
            return
        if entry is None:
            yield ("{} finds no version of {} to keep", who, self.key(k)), world, None
        else:
            version = self.stamp(world.sql, entry)
            yield ("{} reads {} = v{}, keeps its version {}", who, self.key(k), entry.val, version), world, (
                version, (entry.written, entry.val),
            )  # fmt: skip

    def compare_version(self, world: World, who: str, k: int, held: tuple[int, int], basis: Truth) -> Iterator[Change]:
        entry = self.believed(world.stream.kv[k])
        if self._waits(world):
            return
        actual = self.stamp(world.sql, entry) if entry else NONE
        same = actual == held if "6" in self.on else actual[1] == held[1]
        if entry and same:
            yield ("{}: {} is still at version {}", who, self.key(k), held), world, (entry.seq, entry.t, world.boot)
        else:
            yield ("{}: {} is not at version {} any more: ConflictError", who, self.key(k), held), world, None

    # --- waiting for SQL --------------------------------------------------------------------------------------

    def durable(self, world: World, who: str, k: int, seq: int, t: int, boot: int) -> Iterator[Change]:
        """A row as new, in the epoch that is the newest now, and written since this connection began (F-time)."""
        key = self.key(k)
        if not self.same_connection(world, boot):
            yield ("{}: durable({}@{}) raises OutcomeUnknownError: another connection", who, key, seq), world, None
            return
        row = world.sql.rows[k]
        wanted = (world.sql.newest if "F-time epoch" in self.on else 1, seq)  # 1: a process may have slept for long
        yes = bool(row and (row.epoch, row.version) >= wanted and (row.t > world.born or "F-time since" not in self.on))
        if "1" not in self.on:
            yes = world.durable.floor >= seq
        if yes:
            if row is None or row.t < t:
                raise Violation(f"I1: durable({key}@{seq}) is told yes, SQL has {_shown(row)}")
            yield ("{}: durable({}@{}) is told yes", who, key, seq), world, None

    def flush_begins(self, world: World, who: str) -> Iterator[Change]:
        answer = (world.stream.last, world.boot, tuple(t for t, _ in world.truth))
        yield ("{} calls flush() at last_seq {}", who, world.stream.last), world, answer

    def floor_reaches(self, world: World, who: str, last: int, boot: int, promised: Any) -> Iterator[Change]:
        if not self.same_connection(world, boot):
            yield ("{}: flush() raises OutcomeUnknownError: another connection", who), world, "done"
            return
        floor = world.durable.floor
        if floor >= last or not any(e and floor < e.seq <= last for e in world.stream.kv):
            if "1" not in self.on:
                yield from self._flushed(world, who, promised)
            else:
                yield ("{}: flush(): the floor {} has passed {}", who, floor, last), world, "passed"

    def live_above(self, world: World, who: str, last: int, boot: int) -> Iterator[Change]:
        if not self.same_connection(world, boot):
            yield ("{}: flush() raises OutcomeUnknownError: another connection", who), world, None
            return
        kv = world.stream.kv
        above = tuple((k, self.stamp(world.sql, e)) for k, e in enumerate(kv) if e and e.seq > last and not e.clean)
        yield ("{}: flush(): live above {}: {}", who, last, above), world, above

    def all_committed(self, world: World, who: str, above: Any, boot: int, promised: Any) -> Iterator[Change]:
        if not self.same_connection(world, boot):
            yield ("{}: flush() raises OutcomeUnknownError: another connection", who), world, None
            return
        rows = world.sql.rows
        if all((row := rows[k]) and (row.epoch, row.version) >= version for k, version in above):
            yield from self._flushed(world, who, promised)

    def _flushed(self, world: World, who: str, promised: tuple[int, ...]) -> Iterator[Change]:
        for k, t in enumerate(promised):
            row = world.sql.rows[k]
            if t and not (row and row.t >= t) and not (row is None and world.truth[k][1] == 0):
                raise Violation(f"I1: flush() is done, but SQL has {_shown(row)} of {self.key(k)}")
        yield ("{}: flush() is done", who), world, "done"

    def killed(self, world: World, number: int) -> World:
        return world._replace(places=put_at(world.places, number, (-1, ())))


def _shown(row: Row | None) -> str:
    return "nothing" if row is None else f"({row.epoch}, {row.version}) v{row.val}"
