"""The world of the flow: one stream, its durable consumer, one database; and what a server does in one go.

Times: `now` is the server's clock and goes up with each publish; a *tick* is one minimum eviction age, also longer than
any fsync or replication takes. Values are numbers, 0 is a tombstone.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from programs import Process, Runner
from search import Label, Model, Violation

Version = tuple[int, int]
NONE: Version = (0, 0)


class Entry(NamedTuple):
    """The one message that the stream keeps of a key."""

    seq: int
    t: int
    val: int
    written: int  # server time of the original write; of a dirty entry: t
    clean: bool = False
    version: Version = NONE  # of a clean copy: the original's
    fresh: bool = True  # of a clean copy: stored within one minimum age of its T0
    op: int = 0


class Row(NamedTuple):
    """A row of agents.state."""

    epoch: int
    version: int
    t: int
    val: int


class Stream(NamedTuple):
    """What the KV server stores of the bucket."""

    kv: tuple[Entry | None, ...]
    last: int


class Durable(NamedTuple):
    """The consumer's state; its ack floor passes acked and superseded messages alike."""

    gen: int
    delivered: int
    pend: frozenset[int]

    @property
    def floor(self) -> int:
        return min(self.pend) - 1 if self.pend else self.delivered


class Sql(NamedTuple):
    """The database: rows by key, collection floor, high water (epoch, version, t), begins of the epochs 2, 3, …, and
    the server start under which flushes are taken."""

    rows: tuple[Row | None, ...]
    gc: Version
    high: tuple[int, int, int]
    epochs: tuple[int, ...]
    incarnation: int

    @property
    def newest(self) -> int:
        return 1 + len(self.epochs)

    def epoch_at(self, t: int) -> int:
        return 1 + sum(begin < t for begin in self.epochs)


class World(NamedTuple):
    """Everything; `truth` and `done` are known to the judge alone."""

    stream: Stream
    durable: Durable
    sql: Sql
    now: int
    tick: int
    aged: int  # what was written up to this server time is older than the last tick
    boot: int  # server starts, which are connections, too
    born: int  # server time of the last start
    life: int  # of the database: failovers and restores
    told: tuple[int, ...]  # the epochs that the stream's metadata repeats
    mended: tuple[int, int, int]  # the (boot, epoch, life) that a mender has looked after
    disk: tuple[Stream, Durable]  # what a power loss leaves
    replica: Sql  # what a failover leaves
    wire: tuple[Any, ...]  # requests that were given up and may still arrive: (boot, operation, arguments)
    places: tuple[Any, ...]
    budget: tuple[int, ...]
    truth: tuple[tuple[int, int], ...]  # per key: (t, val) of the newest acknowledged write that survives
    done: frozenset[int]  # operations that took effect


FAULTS = ("crash", "lost", "stuck", "power", "failover", "restore", "tick", "sync")


class Scope(NamedTuple):
    """One scenario: who works on which keys, which faults may come how often, and what must be seen to happen."""

    about: str
    keys: tuple[str, ...]
    processes: tuple[Process, ...]
    faults: dict[str, int] = {}  # noqa: RUF012  # never changed
    flushed: bool = False  # the first key lives in SQL only
    must: tuple[str, ...] = ()
    embedded: bool = False
    reads: bool = True  # judge reads and compare-and-sets at once
    waits: bool = True  # at rest nobody may wait for ever
    needs: frozenset[str] = frozenset()  # proposed rules without which this scenario is known to break
    usual: bool = False  # small enough for the usual tests


Change = tuple[Label, World, Any]


T = TypeVar("T")


def put_at(items: tuple[T, ...], index: int, item: T) -> tuple[T, ...]:
    """The tuple with one item changed."""
    return (*items[:index], item, *items[index + 1 :])


class Base(Model):
    """How a world moves: the next operation of a process, or a fault."""

    def __init__(self, scope: Scope, on: frozenset[str]) -> None:
        self.scope, self.on = scope, on
        self.runner = Runner(self, scope.processes)
        self.repeats = bool({"lost", "stuck"} & scope.faults.keys())  # else nobody sends anything twice
        self.twins = [i for i, one in enumerate(scope.processes) if one.programs[0][0] == "flusher"]

    def start(self) -> World:
        keys = len(self.scope.keys)
        kv: tuple[Entry | None, ...] = (None,) * keys
        rows: tuple[Row | None, ...] = (None,) * keys
        truth = ((0, 0),) * keys
        last = 0
        if self.scope.flushed:
            last, rows, truth = 1, put_at(rows, 0, Row(1, 1, 1, 5)), put_at(truth, 0, (1, 5))
        sql = Sql(rows, NONE, (1, last, last), (), 0)
        stream, durable = Stream(kv, last), Durable(0, last, frozenset())
        places = tuple(self.runner.at(i, (0, ()))[0] for i in range(len(self.scope.processes)))
        budget = tuple(self.scope.faults.get(fault, 0) for fault in FAULTS)
        return World(
            stream,
            durable,
            sql,
            last,
            0,
            last,
            0,
            0,
            0,
            (),
            (0, 1, 0),
            (stream, durable),
            sql,
            (),
            places,
            budget,
            truth,
            frozenset(),
        )

    def steps(self, world: World) -> Iterator[tuple[Label, World]]:
        for number, process in enumerate(self.scope.processes):
            place = world.places[number]
            operation = self.runner.at(number, place)[1]
            if operation is None:
                continue
            for label, after, answer in getattr(self, operation[0])(world, process.name, *operation[1:]):
                following = self.runner.at(number, (place[0], (*place[1], answer)))[0]
                yield label, after._replace(places=put_at(after.places, number, following))
        for index, (boot, name, arguments) in enumerate(world.wire):
            if boot == world.boot or "7" not in self.on:
                rest = world.wire[:index] + world.wire[index + 1 :]
                for label, after, _ in getattr(self, name)(world._replace(wire=rest), "the wire", *arguments):
                    yield label, after

    def canonical(self, world: World) -> World:
        """Flushers are interchangeable."""
        if len(self.twins) == 2:
            one, two = self.twins
            places = world.places
            if hash(places[one]) > hash(places[two]):
                return world._replace(places=put_at(put_at(places, one, places[two]), two, places[one]))
        return world

    # --- what everyone uses -----------------------------------------------------------------------------------

    def key(self, k: int) -> str:
        return self.scope.keys[k]

    def spend(self, world: World, fault: str) -> World | None:
        """One fault less in the budget; None when there is none left."""
        index = FAULTS.index(fault)
        left = world.budget[index]
        return world._replace(budget=put_at(world.budget, index, left - 1)) if left else None

    def stamp(self, sql: Sql, entry: Entry) -> Version:
        """The version of a live entry. Its epoch follows from its time (rule 3), not from what is newest."""
        if entry.clean:
            return entry.version
        return (sql.epoch_at(entry.t) if "3" in self.on else sql.newest, entry.seq)

    def believed(self, entry: Entry | None) -> Entry | None:
        """F-t0: a copy whose hydration took a minimum age or longer counts as absent."""
        return None if entry and entry.clean and not entry.fresh and "F-t0" in self.on else entry

    def same_connection(self, world: World, boot: int) -> bool:
        return boot == world.boot or "F-conn" not in self.on

    def publish(
        self, world: World, k: int, entry: Entry, expected: int | None = None, basis: tuple[int, int] | None = None
    ) -> World | None:
        """Store an entry; the key's former message goes, from the durable's pending ones, too. None: refused."""
        stream = world.stream
        old = stream.kv[k]
        if expected is not None and expected != (old.seq if old else 0):
            return None
        seq, t = stream.last + 1, world.now + 1
        truth, done = world.truth, world.done
        if entry.clean:
            entry = entry._replace(seq=seq, t=t)
        else:
            entry = entry._replace(seq=seq, t=t, written=t)
            if entry.op in done:
                raise Violation(f"I12: one operation took effect twice, now as {self.key(k)}@{seq}")
            self._judge_basis(world, k, seq, basis)
            truth = put_at(truth, k, (t, entry.val))
            done = done | {entry.op} if self.repeats else done
        durable = world.durable
        if old and old.seq in durable.pend:
            durable = durable._replace(pend=durable.pend - {old.seq})
        return world._replace(
            stream=Stream(put_at(stream.kv, k, entry), seq), durable=durable, now=t, truth=truth, done=done
        )

    def _judge_basis(self, world: World, k: int, seq: int, basis: tuple[int, int] | None) -> None:
        newest = world.truth[k]
        if basis is None or not self.scope.reads or basis == newest or (basis[1] == 0 and newest[1] == 0):
            return
        raise Violation(
            f"I12: lost update: {self.key(k)}@{seq} builds on v{basis[1]}, the newest acked is v{newest[1]}"
        )

    def write_row(self, world: World, k: int, entry: Entry) -> World:
        """What a flush does to one row."""
        sql = world.sql
        old, version = sql.rows[k], self.stamp(sql, entry)
        if old and (old.t > entry.written or ((old.epoch, old.version) > version)):
            raise Violation(f"I3: SQL goes back: {self.key(k)} {old} becomes {version} v{entry.val}")
        new = None if not entry.val and "tombstone" not in self.on else Row(*version, entry.written, entry.val)
        high = sql.high if entry.clean else max(sql.high, (*version, entry.t))
        truth = max(world.truth[k], (entry.written, entry.val))  # a lost write that reaches SQL after all is back
        sql = sql._replace(rows=put_at(sql.rows, k, new), high=high)
        return world._replace(sql=sql, truth=put_at(world.truth, k, truth))

    def new_durable(self, world: World) -> World:
        """F-gen: a new name, deliver all; acks to the old one have no address."""
        return world._replace(durable=Durable(world.durable.gen + 1, 0, frozenset()))
