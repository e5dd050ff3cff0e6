"""Which stream belongs to which database, and in which life (I3, I13; flow rules 4, 8).

A random store id stands in `agents.epochs`, which is authoritative, in the stream's metadata, and in that of the two
buckets beside it. A stream and a database that do not name the same store are refused before anything is written, for
each would fence out, acknowledge and evict what the other's flusher brings. A stream without our metadata is new: for
an empty database it begins epoch 1, for one that knows a store it begins the next epoch, if it can be shown that the
bucket was recreated and that this is not another NATS (`sql/epochs.py`, `refused`).
"""

import re
from typing import NamedTuple
from uuid import UUID

from cenote.config import Config
from cenote.engine.epoch import AWAY_KEY, STORE_KEY, Epochs
from cenote.errors import SetupError
from cenote.kv.bucket import Buckets, StreamInfo, ensure, stream_info, update_metadata
from cenote.kv.clock import parse_time_us
from cenote.kv.errors import JsNotFound
from cenote.kv.link import Link
from cenote.kv.stream import StateStream
from cenote.naming import AGENT_STATE, QUERY_CACHE, SESSION_DATA, Names
from cenote.sql.epochs import refused
from cenote.sql.rows import Claim, EpochRow, NewEpoch
from cenote.sql.state import StateTable

_EMBEDDED = re.compile(r"(?:cenote-)?([0-9a-f]{16})(?:-recovery)?")  # the random part is the data directory's


class Look(NamedTuple):
    """What NATS says of the store it belongs to; nothing was created to learn it."""

    info: StreamInfo | None
    epochs: Epochs | None
    claim: Claim


async def look(link: Link, names: Names, deadline_ms: int = 0) -> Look:
    """Ask the stream, and where it does not say, its neighbours. Raises what `stream_info` raises."""
    info = await _found(link, names, AGENT_STATE, deadline_ms)
    epochs = None if info is None else Epochs.from_metadata(info.metadata, info.created)
    named = {info.metadata[STORE_KEY]} if info is not None and STORE_KEY in info.metadata else set()
    if not named:
        for bucket in (SESSION_DATA, QUERY_CACHE):
            beside = await _found(link, names, bucket, deadline_ms)
            if beside is not None and STORE_KEY in beside.metadata:
                named.add(beside.metadata[STORE_KEY])
    return Look(info, epochs, _claim(link, info, named))


def foreign(found: Look, newest: EpochRow | None, home: str | None) -> SetupError | None:
    """Why this stream and this database must not be used together; None when they may (rule 8)."""
    if found.epochs is not None:
        if newest is not None and UUID(newest.store_id) == UUID(found.epochs.store_id):
            return None
    elif not refused(found.claim, newest, home):
        return None
    return _strangers(found.claim.store_ids, newest)


def _strangers(named: frozenset[str], newest: EpochRow | None) -> SetupError:
    stream = f"store {' and '.join(sorted(named))}" if named else "no store"
    database = "no store" if newest is None else f"store {newest.store_id}"
    words = f"this NATS belongs to {stream}, this PostgreSQL to {database}"
    if not named:
        words += ": either it is another NATS, or it has lost everything"
    return SetupError(
        words,
        hint="give each its own partner again (kv.url, sql.url, namespace), or join them for good: cenote adopt",
    )


async def agree(link: Link, table: StateTable, names: Names, deadline_ms: int) -> None:
    """Before anything is written to either: do the stream and the database belong together?

    Raises:
        SetupError: they do not.
        UnavailableError: one of them cannot be asked.
    """
    stranger = foreign(await look(link, names, deadline_ms), *await table.known())
    if stranger is not None:
        raise stranger


async def belongs(table: StateTable, epochs: Epochs, stream: StateStream) -> EpochRow:
    """The newest epoch of the database, which must be of the stream's own store. A stream whose database was given to
    another one is marked, so that those who never talk to PostgreSQL learn it as well.

    Raises:
        SetupError: the database belongs to another store, or to none.
        UnavailableError: PostgreSQL cannot be reached.
    """
    rows = await table.epochs()
    if rows and UUID(rows[-1].store_id) == UUID(epochs.store_id):
        if rows[-1].epoch < epochs.newest:  # the database has gone back in time; the stream still knows (rule 5)
            await table.reinstate(_lost(epochs, rows[-1].epoch))
            rows = await table.epochs()
        return rows[-1]
    if UUID(epochs.store_id) in {UUID(row.store_id) for row in rows}:
        await stream.update_metadata({AWAY_KEY: rows[-1].store_id})
    raise _strangers(frozenset({epochs.store_id}), rows[-1] if rows else None)


def _lost(epochs: Epochs, newest: int) -> list[tuple[int, NewEpoch]]:
    return [
        (number, NewEpoch(from_us, epochs.store_id, epochs.created, "", "", "given back by the stream"))
        for number, from_us in zip(epochs.numbers, epochs.starts_us, strict=True)
        if number > newest
    ]


async def settle(
    link: Link, stream: StateStream, table: StateTable, names: Names, config: Config, *, before: str = ""
) -> tuple[Epochs, StreamInfo]:
    """Find or create the buckets, and agree with the database on the epoch; safe for any number of processes at once.

    before: the store id that a running store has known so far.

    Raises:
        SetupError: the stream and the database belong to different stores, or the stream to another than before.
        UnavailableError: NATS, or for a new stream PostgreSQL, cannot be reached.
    """
    found = await look(link, names, config.kv.deadline_ms)
    if found.epochs is None:
        stranger = foreign(found, *await table.known())
        if stranger is not None:
            raise stranger
    elif before and UUID(found.epochs.store_id) != UUID(before):
        await _adopted(table, found.epochs, before)
    buckets = await ensure(link, names, config.kv, cache_ttl_s=config.cache.ttl_s)
    info = buckets.state
    _stays(info)
    epochs = Epochs.from_metadata(info.metadata, info.created)
    if epochs is None:
        epochs = await _begun(table, _claim(link, info, set(found.claim.store_ids)))
        info = await stream.update_metadata(epochs.metadata())
    await mark(link, buckets, epochs.store_id)
    return epochs, info


def _stays(info: StreamInfo) -> None:
    if info.metadata.get(AWAY_KEY):
        raise SetupError(
            f"the PostgreSQL of this NATS was given to another NATS, as store {info.metadata[AWAY_KEY]}",
            hint="use that one; to bring over what this one holds, open it with an empty PostgreSQL: cenote adopt",
        )


async def _begun(table: StateTable, claim: Claim) -> Epochs:
    rows = await table.settle_epoch(claim)
    newest = rows[-1] if rows else None
    if newest is None or newest.stream_created != claim.stream_created:
        raise _strangers(claim.store_ids, newest)
    return Epochs(
        newest.store_id, claim.stream_created, tuple(row.epoch for row in rows), tuple(row.from_us for row in rows)
    )


async def _adopted(table: StateTable, epochs: Epochs, before: str) -> None:
    """Another store's stream is ours all the same, if our own database was given to it by `cenote adopt`."""
    rows = await table.epochs()
    ours = {UUID(row.store_id) for row in rows}
    if not rows or UUID(rows[-1].store_id) != UUID(epochs.store_id) or UUID(before) not in ours:
        raise SetupError(
            f"the NATS that answers belongs to store {epochs.store_id}, this process to store {before}",
            hint="give this process its own NATS again, or join the two for good: cenote adopt",
        )


async def mark(link: Link, buckets: Buckets, store_id: str) -> None:
    """Let the neighbours name the store, too: they tell a recreated bucket from another NATS."""
    for beside in (buckets.session, buckets.cache):
        if beside.metadata.get(STORE_KEY) != store_id:
            await update_metadata(link, beside.config["name"], {STORE_KEY: store_id})


async def _found(link: Link, names: Names, bucket: str, deadline_ms: int) -> StreamInfo | None:
    try:
        return await stream_info(link, names.stream(bucket), deadline_ms)
    except JsNotFound:
        return None


def _claim(link: Link, info: StreamInfo | None, named: set[str]) -> Claim:
    created, created_us = ("", 0) if info is None else (info.created, parse_time_us(info.created.encode()))
    embedded = _EMBEDDED.fullmatch(link.server_name)
    return Claim(created, created_us, frozenset(named), embedded[1] if embedded else "")
