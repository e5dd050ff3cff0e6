"""The flow and its rewinds: faults, what must hold at rest, and the scenarios."""

from collections.abc import Iterator

from machines import MACHINES, Machines
from search import Label, Violation
from world import Durable, Stream, World

RULES = {
    "fence": "rows of SQL change to a higher (epoch, version) only",
    "ack last": "a message is acked after the commit, not before",
    "tombstone": "a delete is a tombstone row in SQL, not a missing row",
    "clean": "a hydrated copy is marked clean and is never flushed as a write",
    "create-only": "a hydrator publishes over what it read and nothing else",
    "1": "durable() and flush() ask for the committed row; the ack floor proves nothing",
    "2": "PURGE only on the connection and in the epoch that its numbers were read in",
    "3": "a message's epoch follows from its server time; sequence and time order must agree",
    "4 once": "an epoch change is a compare-and-set",
    "4 mends": "the mender replaces, by compare-and-set, what is older than SQL by (epoch, version), deletes nothing",
    "5": "a rewind of SQL is noticed: eviction stops, everything in KV goes through the fence again",
    "5 clean": "… clean copies, too, under their original version",
    "5 epochs": "… and epochs that SQL has lost are given back by the stream",
    "5 asks": "the evictor asks SQL who it is after the wait and before the PURGE",
    "6": "no dirty write on 'absent in KV' where SQL may have the key; comparisons are on (epoch, version)",
    "7": "nothing is buffered over a reconnect",
    "12": "collecting a tombstone raises a floor below which no flush inserts",
    "12 waits": "nothing is collected before the mender has announced",
    "14": "a value that SQL refuses advances its row all the same",
    "16": "after a lost answer: look for the own operation, no blind second put",
    "18": "a message in the hands of a flusher that died is delivered again",
    "F-conn": "a stream sequence dies with its connection",
    "F-gen": "every server start, epoch and SQL rewind begins a new durable, deliver all",
    "F-mend": "… and a mender compares every live entry with SQL",
    "F-start": "every start of a server that is not ours begins an epoch: a lost tail may leave no other trace",
    "F-wait": "after a server start, reads and conditional writes wait for the mender",
    "F-time epoch": "a receipt's epoch is the newest when it is asked, not what a process knew at the ack",
    "F-time since": "a receipt counts only rows that were written since the writer's connection began",
    "F-gc": "what the collection floor would refuse is looked up at the leader",
    "F-t0": "a clean copy that took a minimum age is not believed",
    "F-mark": "what nobody holds gets a clean tombstone first, then compare-and-set on that",
    "F-aged": "the evictor uses a floor that it recorded one minimum age ago",
    "F-inc": "a flush commits only under the epoch and server start that it fetched under",
}
ALL = frozenset(RULES)
PROPOSED = frozenset({"F-start"})
BUILT = ALL - PROPOSED


class Flow(Machines):
    """One KV server, one database, and what may befall them."""

    def faults(self, world: World) -> Iterator[tuple[Label, World]]:
        yield from self._kills(world)
        if spent := self.spend(world, "tick"):
            yield (
                ("the minimum age goes by",),
                spent._replace(
                    tick=world.tick + 1, aged=world.now, disk=(world.stream, world.durable), replica=world.sql
                ),
            )
        if spent := self.spend(world, "sync"):
            yield from self._syncs(world, spent)
        if world.disk[0].last < world.stream.last and (spent := self.spend(world, "power")):
            yield self._power_loss(spent)
        if world.replica != world.sql and (spent := self.spend(world, "failover")):
            yield self._sql_back(spent, "PostgreSQL fails over and loses its last commits")
        if spent := self.spend(world, "restore"):
            empty = self.start().sql._replace(rows=(None,) * len(self.scope.keys))
            yield self._sql_back(spent._replace(replica=empty), "an old backup of PostgreSQL is restored")

    def _kills(self, world: World) -> Iterator[tuple[Label, World]]:
        spent = self.spend(world, "crash")
        if spent is None:
            return
        for number, process in enumerate(self.scope.processes):
            if process.loops and world.places[number][1]:
                places = list(world.places)
                places[number] = (0, ())
                yield ("{} is killed, another one starts", process.name), spent._replace(places=tuple(places))
            elif world.places[number][1]:
                yield ("{} is killed", process.name), self.killed(spent, number)

    def _syncs(self, world: World, spent: World) -> Iterator[tuple[Label, World]]:
        if "power" in self.scope.faults:
            yield ("the stream is fsynced",), spent._replace(disk=(world.stream, world.disk[1]))
            yield ("the consumer's state is fsynced",), spent._replace(disk=(world.disk[0], world.durable))
        if "failover" in self.scope.faults:
            yield ("PostgreSQL replicates",), spent._replace(replica=world.sql)

    def _power_loss(self, spent: World) -> tuple[Label, World]:
        """Stream and consumer are rewound independently; the server clamps a consumer that is ahead."""
        stream, old = spent.disk
        live = {entry.seq for entry in stream.kv if entry}
        delivered = min(old.delivered, stream.last)
        durable = Durable(old.gen, delivered, frozenset(s for s in old.pend if s in live and s <= delivered))
        after = spent._replace(
            stream=stream, durable=durable, boot=spent.boot + 1, born=spent.now, disk=(stream, durable)
        )
        if self.scope.embedded:
            after = self._drained(after)
        label = ("POWER LOSS of the KV server: last_seq {} becomes {}", spent.stream.last, after.stream.last)
        return label, self._survivors(after)

    def _drained(self, world: World) -> World:
        """Our own server: before anybody may connect, survivors go through the fence, then numbers are skipped."""
        for k, entry in enumerate(world.stream.kv):
            row = world.sql.rows[k]
            if entry and not entry.clean and not (row and (row.epoch, row.version) >= self.stamp(world.sql, entry)):
                world = self.write_row(world, k, entry)
        last = max(world.stream.last, world.sql.high[1]) + 10
        stream, durable = (
            Stream((None,) * len(world.stream.kv), last),
            Durable(world.durable.gen + 1, last, frozenset()),
        )
        return world._replace(
            stream=stream, durable=durable, disk=(stream, durable), sql=world.sql._replace(incarnation=world.boot),
            mended=(world.boot, *world.mended[1:]),
        )  # fmt: skip

    def _sql_back(self, spent: World, words: str) -> tuple[Label, World]:
        after = spent._replace(sql=spent.replica, life=spent.life + 1)
        return (words + ": {}", [row and (row.epoch, row.version) for row in after.sql.rows]), self._survivors(after)

    def _survivors(self, world: World) -> World:
        """What a declared fault took is no longer promised: the newest copy that is left is the truth."""
        truth = []
        for k, newest in enumerate(world.truth):
            entry, row = world.stream.kv[k], world.sql.rows[k]
            copies = [(0, 0)] + ([(entry.written, entry.val)] if entry else []) + ([(row.t, row.val)] if row else [])
            truth.append(max(copy for copy in copies if copy[0] <= newest[0]))
        here = {entry.op for entry in world.stream.kv if entry} | {row.val for row in world.sql.rows if row}
        return world._replace(truth=tuple(truth), done=world.done & here)

    def at_rest(self, world: World) -> None:
        for k, (t, val) in enumerate(world.truth):
            row, entry, key = world.sql.rows[k], self.believed(world.stream.kv[k]), self.key(k)
            if t and not (row and row.t >= t) and not (row is None and val == 0):
                raise Violation(f"I1: at rest the newest acked write of {key} is v{val}, SQL has {row}, KV has {entry}")
            if val == 0 and row and row.val and row.t <= t:
                raise Violation(f"I2: at rest the deleted {key} is back in SQL")
            if entry and row and entry.written < row.t:
                raise Violation(f"I10: at rest KV's {key}@{entry.seq} = v{entry.val} hides the newer v{row.val} of SQL")
            if entry and entry.val and val == 0 and entry.written < t:
                raise Violation(f"I2: at rest the deleted {key} is back in KV")
        for number, process in enumerate(self.scope.processes):
            at = world.places[number][0]
            if self.scope.waits and process.programs[0][0] not in MACHINES and 0 <= at < len(process.programs):
                raise Violation(f"I16: at rest {process.name} waits for ever in {process.programs[at]}")
