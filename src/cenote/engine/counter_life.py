"""What the counter stream says of itself: whose it is, which life of it, and whether that was compared with SQL (I3;
flow rules 4, 8).

A stream that was lost, or put back to an older copy, has forgotten increments that SQL may still hold. As with state
(`engine/waiting.py`) nobody counts on before that is mended, and the stream's metadata says that it is: the epoch, the
start of the KV server and the stream's creation for which it was compared. Whoever counts asks once for each
connection, so a start of the server is never missed, and pays nothing for each call.
"""

from typing import NamedTuple

from cenote.engine.core import Core, reading
from cenote.engine.epoch import STORE_KEY
from cenote.engine.incarnation import incarnation
from cenote.errors import SetupError
from cenote.kv.bucket import StreamInfo
from cenote.kv.counters import CounterStream, faults, life_of
from cenote.kv.errors import JsNotFound, NotSent
from cenote.kv.link import Link
from cenote.naming import Names
from cenote.sql.counters import CounterTable

COUNTED_KEY = "cenote.counted"


class Life(NamedTuple):
    """The stream as its leader described it over one connection. epoch: the last one that was announced, 0 for none;
    settled: whether it was announced for this very start of the server."""

    generation: int
    start: str
    created: str
    prefix: str
    last_seq: int
    epoch: int
    settled: bool

    def same(self, other: "Life | None") -> bool:
        """Whether no start of the server, no other leader and no other stream lies between the two."""
        return other is not None and (self.start, self.created) == (other.start, other.created)


def announcement(epoch: int, life: Life) -> dict[str, str]:
    """The metadata that lets everybody count."""
    return {COUNTED_KEY: f"{epoch} {life.start} {life.created}"}


async def look(core: Core, stream: CounterStream) -> Life | None:
    """Ask the stream's leader; None when there is no such stream.

    Raises:
        SetupError: it is another store's, or would not count right.
        UnavailableError: nobody can say.
    """
    core.stream.demand_ours()
    try:
        with reading():
            info = await stream.info()
    except JsNotFound:
        return None
    start = incarnation(core.link, info)
    if not start:
        raise NotSent("reconnected while the counter stream was looked at", tier="DISTRIBUTED_KV")
    store = info.metadata.get(STORE_KEY)
    if store != core.epochs.store_id:
        raise SetupError(
            f"stream {stream.name} belongs to {f'store {store}' if store else 'no store'},"
            f" this process to store {core.epochs.store_id}",
            hint="give this process its own NATS again, or use another namespace",
        )
    wrong = faults(info)
    if wrong:
        raise SetupError(f"stream {stream.name} would count wrong: {'; '.join(wrong)}", hint="use another namespace")
    epoch, announced_for = _announced(info)
    settled = epoch > 0 and announced_for == start
    return Life(info.generation, start, info.created, life_of(info), info.last_seq, epoch, settled)


def _announced(info: StreamInfo) -> tuple[int, str]:
    """The epoch and the start of the server that the stream was compared for, if it is the stream that says so."""
    words = info.metadata.get(COUNTED_KEY, "").split(" ")
    return (int(words[0]), words[1]) if len(words) == 3 and words[2] == info.created else (0, "")


async def hand_over(link: Link, table: CounterTable, names: Names, store_id: str) -> None:
    """`cenote adopt`: the counters of this NATS join another database, for which its own are older than these. A
    counter that only the database has is added to the stream when that is compared next."""
    stream = CounterStream(link, names)
    try:
        info = await stream.info()
    except JsNotFound:
        return
    head = await table.head()
    epoch = 1 + max(_announced(info)[0], 0 if head is None else head.epoch)
    await stream.update_metadata({STORE_KEY: store_id, COUNTED_KEY: f"{epoch} adopted {info.created}"})
