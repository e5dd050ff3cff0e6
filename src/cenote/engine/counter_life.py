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
from cenote.kv.counters import CounterStream, faults, life_of
from cenote.kv.errors import JsNotFound, NotSent

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
    epoch, settled = 0, False
    words = info.metadata.get(COUNTED_KEY, "").split(" ")
    if len(words) == 3 and words[2] == info.created:
        epoch, settled = int(words[0]), words[1] == start
    return Life(info.generation, start, info.created, life_of(info), info.last_seq, epoch, settled)
