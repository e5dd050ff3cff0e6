"""A stream that went back in time: how it is noticed, and the epoch that begins with it (I1, I3; flow rules 3, 4).

A server that is not ours to protect may lose its newest messages and give their sequences to others. Within one life
of the stream the order of sequences and the order of server times agree; what disagrees is a stale delivery, a step of
the server's clock, or a later life. The stream's leader tells which. `agents.epochs` is authoritative for what follows.
"""

from collections.abc import Iterable, Sequence

from cenote.engine.batch import Delivery
from cenote.engine.belonging import belongs
from cenote.engine.core import Core
from cenote.engine.epoch import Epochs
from cenote.errors import UnavailableError
from cenote.sql.rows import EpochRow, Flushed, HighWater, NewEpoch, Row, SqlVersion


class Rewound(Exception):
    """The stream went back: from `sequence` on it holds another life, of which a message at `time_us` was found (None:
    it ends before `sequence`)."""

    def __init__(self, epoch: int, sequence: int, time_us: int | None) -> None:
        super().__init__(f"the stream went back below sequence {sequence}")
        self.epoch = epoch
        self.sequence = sequence
        self.time_us = time_us


class Envelope:
    """The highest sequence and the newest server time that have been met in this life of the stream."""

    __slots__ = ("sequence", "time_us")

    def __init__(self, high: HighWater | None) -> None:
        self.sequence, self.time_us = high or (0, 0)

    def odd(self, taken: Iterable[Delivery]) -> list[tuple[Delivery, bool]]:
        """Those deliveries whose sequence and time disagree with what was met before, and whether their time is the
        later one; the others are met from now on. A comparison or two for each: every write passes here."""
        sequence, time_us, found = self.sequence, self.time_us, []
        for delivery in taken:
            message = delivery.message
            if message.sequence > sequence:
                sequence = message.sequence
                if message.time_us < time_us:
                    found.append((delivery, False))
                else:
                    time_us = message.time_us
            elif message.time_us > time_us:
                found.append((delivery, True))
        self.sequence, self.time_us = sequence, time_us
        return found


def later_life(row: Row, held: SqlVersion | None) -> bool:
    """Whether a row that the fence refuses was written after the one that is held: a lower or equal version of the same
    epoch, and yet a later time."""
    return (
        held is not None
        and held.epoch == row.epoch
        and held.version >= row.version
        and held.kv_time_us < row.kv_time_us
    )


async def of_this_life(core: Core, sequence: int, time_us: int, *, generation: int) -> bool:
    """Whether the leader holds that very message; if not, it was overwritten, or is of a lost tail.

    Raises:
        UnavailableError: the connection is another one than the delivery's (F-conn).
    """
    found = await core.stream.leader_get_sequence(sequence)
    if core.link.generation != generation:
        raise UnavailableError("the connection was replaced during a look at the leader", tier="DISTRIBUTED_KV")
    return found is not None and found.time_us == time_us


async def stale(core: Core, odd: Iterable[tuple[Delivery, bool]], *, generation: int) -> list[Delivery]:
    """Of deliveries that disagree: those that nobody may apply or acknowledge. Of what the leader still holds, a higher
    sequence with an earlier time is a step of the server's clock, and goes by its sequence.

    Raises:
        Rewound: one belongs to a later life of the stream.
    """
    found = []
    for delivery, later in odd:
        message = delivery.message
        if not await of_this_life(core, message.sequence, message.time_us, generation=generation):
            found.append(delivery)
        elif later:
            raise Rewound(core.epochs.newest, message.sequence, message.time_us)
    return found


async def examined(core: Core, rows: list[Row], outcome: Flushed | None, *, generation: int) -> Flushed | None:
    """The outcome of a flush. A row that the fence refuses is not simply older: one that was written later than what
    SQL holds is of a later life of the stream, if the leader still holds it, and must not be acknowledged.

    Raises:
        Rewound: there is one.
    """
    if outcome is None or outcome.applied == len(rows):
        return outcome
    held = await core.table.versions((row.agent_id, row.key) for row in rows)
    for row in rows:
        later = later_life(row, held.get((row.agent_id, row.key)))
        if later and await of_this_life(core, row.version, row.kv_time_us, generation=generation):
            raise Rewound(core.epochs.newest, row.version, row.kv_time_us)
    return outcome


async def begin(core: Core, rewound: Rewound) -> None:
    """Begin the epoch that a rewind asks for, unless somebody else has; then let every process know it.

    It begins after everything that was flushed of the life before; what has been flushed of the new one already is
    re-stamped in the same transaction.
    """
    newest = await belongs(core.table, core.epochs, core.stream)
    if newest.epoch == rewound.epoch:
        flushed_us = await core.table.newest_flushed(newest.epoch, rewound.sequence, rewound.time_us)
        from_us = max(newest.from_us, flushed_us) + 1
        new = NewEpoch(from_us, newest.store_id, newest.stream_created, "", newest.sql_identity, str(rewound))
        await core.table.insert_epoch((newest.epoch, newest.incarnation or ""), new)
    await publish(core)


async def publish(core: Core) -> None:
    """Copy the epochs into the stream's metadata, which is where processes learn of them: whoever began the last one
    may have died before it could."""
    rows = await core.table.epochs()
    if rows and rows[-1].stream_created == core.epochs.created:
        epochs = _epochs(rows)
        if epochs != core.epochs:
            await core.stream.update_metadata(epochs.metadata())
    await core.probe_once()


def _epochs(rows: Sequence[EpochRow]) -> Epochs:
    newest = rows[-1]
    starts = tuple(row.from_us for row in rows)
    return Epochs(newest.store_id, newest.stream_created, tuple(row.epoch for row in rows), starts)
