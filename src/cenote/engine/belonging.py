"""Which stream belongs to which database, and in which life (I3, I13; flow rules 4, 8).

`agents.epochs` is authoritative; the stream's metadata repeats it. A stream without our metadata is new: for an empty
database it begins epoch 1, for one that knows a store it begins the next epoch (the bucket was recreated), unless a
flusher of another stream is alive, which means that two NATS stand before one database.
"""

from uuid import UUID

from cenote import limits
from cenote.config import Config
from cenote.engine.epoch import STORE_KEY, Epochs
from cenote.errors import SetupError
from cenote.kv.bucket import StreamInfo, ensure
from cenote.kv.clock import parse_time_us
from cenote.kv.link import Link
from cenote.kv.stream import StateStream
from cenote.naming import Names
from cenote.sql.rows import EpochRow
from cenote.sql.state import StateTable


async def belongs(table: StateTable, epochs: Epochs) -> EpochRow:
    """The newest epoch of the database, which must be of the stream's own store.

    Raises:
        SetupError: the stream's metadata names another store, or the database knows none.
        UnavailableError: PostgreSQL cannot be reached.
    """
    rows = await table.epochs()
    if not rows or UUID(rows[-1].store_id) != UUID(epochs.store_id):
        raise SetupError(
            "this NATS belongs to the store of another PostgreSQL",
            hint="give it back its own sql.url, or an empty NATS",
        )
    return rows[-1]


async def settle(
    link: Link, stream: StateStream, table: StateTable, names: Names, config: Config, writer_id: str
) -> tuple[Epochs, StreamInfo]:
    """Find or create the buckets, and agree with the database on the epoch; safe for any number of processes at once.

    Raises:
        SetupError: the stream and the database belong to different stores.
        UnavailableError: NATS, or for a new stream PostgreSQL, cannot be reached.
    """
    buckets = await ensure(link, names, config.kv, session_ttl_s=config.session.ttl_s, cache_ttl_s=config.cache.ttl_s)
    info = buckets.state
    known = Epochs.from_metadata(info.metadata, info.created)
    if known is not None:
        return known, info
    rows = await table.settle_epoch(
        stream_created=info.created,
        created_us=parse_time_us(info.created.encode()),
        store_id=info.metadata.get(STORE_KEY),
        alive_s=limits.FOREIGN_FLUSHER_S,
        own_flusher=writer_id,
    )
    newest = rows[-1]
    if newest.stream_created != info.created:
        raise SetupError(
            "this PostgreSQL already belongs to the store of another NATS, whose flusher is alive",
            hint="give this NATS a database or a namespace of its own",
        )
    epochs = Epochs(newest.store_id, info.created, tuple(row.epoch for row in rows), tuple(row.from_us for row in rows))
    return epochs, await stream.update_metadata(epochs.metadata())
