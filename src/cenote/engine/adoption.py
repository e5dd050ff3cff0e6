"""Join a stream and a database that do not belong together into one store, when a human says so (I1; flow rule 8).

Both histories count from 1, so their versions say nothing about which value is newer. What KV holds wins: it may be
the only copy, while a row of SQL that it replaces is kept as a dead letter. To make that true by the ordinary rules
alone, every live entry is written anew, clean copies as dirty ones, for their rows may be in another database; then a
new epoch begins at the time before the first of them, under a new store id. From there on the flusher does what it
always does, and whoever holds one of the old ids is refused. A crash in between leaves two strangers, as before.
"""

import asyncio
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from cenote import limits
from cenote.config import Config
from cenote.engine import entries
from cenote.engine.belonging import Look, foreign, look, mark
from cenote.engine.counter_life import hand_over
from cenote.engine.epoch import AWAY_KEY, Epochs
from cenote.engine.lease import Board, Lease
from cenote.errors import CenoteError, SetupError, UnavailableError
from cenote.kv.bucket import ensure
from cenote.kv.errors import WrongSequence
from cenote.kv.link import Link
from cenote.kv.message import Message, header_value
from cenote.kv.stream import StateStream, sequence_of
from cenote.model import entry, value
from cenote.model import key as keys
from cenote.model.entry import Stored
from cenote.sql.counters import CounterTable
from cenote.sql.rows import EpochRow, FlusherRow, NewEpoch
from cenote.sql.state import StateTable

_PAGE = 500
_REPLACED = "replaced by what another NATS held: cenote adopt"


@dataclass(frozen=True)
class Sides:
    """What each side says of itself. Ids are "" where there is none; times are ms since 1970."""

    joined: bool
    nats_store: str
    nats_entries: int
    nats_bytes: int
    nats_epoch: int
    nats_flusher: str
    sql_store: str
    sql_rows: int
    sql_epoch: int
    sql_flushed_ms: int | None
    sql_flusher: str

    def document(self) -> dict[str, Any]:
        """As JSON shows it."""
        return asdict(self)


class Adopted(NamedTuple):
    """What an adoption did."""

    store_id: str
    epoch: int
    entries: int
    replaced: int
    blobs: int


class Ground(NamedTuple):
    """What an adoption stands on."""

    link: Link
    table: StateTable
    config: Config


async def sides(ground: Ground) -> Sides:
    """Look at both; nothing is written. Raises UnavailableError."""
    link, table, config = ground
    names = config.names
    found = await look(link, names, config.kv.deadline_ms)
    newest, home = await table.known()
    beats, rows = (await table.heartbeats(), await table.count_rows()) if newest else ([], 0)
    info = found.info
    return Sides(
        joined=foreign(found, newest, home) is None and not (info and info.metadata.get(AWAY_KEY)),
        nats_store=" and ".join(sorted(found.claim.store_ids)),
        nats_entries=info.messages if info else 0,
        nats_bytes=info.bytes if info else 0,
        nats_epoch=found.epochs.newest if found.epochs else 0,
        nats_flusher=await _kv_flusher(link, found, config),
        sql_store=newest.store_id if newest else "",
        sql_rows=rows,
        sql_epoch=newest.epoch if newest else 0,
        sql_flushed_ms=beats[0].committed_us // 1000 if beats else None,
        sql_flusher=_sql_flusher(beats),
    )


async def _kv_flusher(link: Link, found: Look, config: Config) -> str:
    try:
        board = await Lease(link, config.names, "adopt").read() if found.info else None
    except CenoteError:  # no bucket, hence no lease
        board = None
    board = board or Board()
    alive = board.holder != "" and board.alive(link.server_now_ms())
    return f"process {board.pid} on {board.host}" if alive else ""


def _sql_flusher(beats: list[FlusherRow]) -> str:
    alive = bool(beats) and beats[0].age_ms < limits.FOREIGN_FLUSHER_S * 1000
    return f"flusher {beats[0].flusher_id}, {beats[0].age_ms} ms ago" if alive else ""


async def adopt(ground: Ground) -> Adopted | None:
    """Make one store of the two; None when they are one already. Safe to repeat, and after a crash.

    Raises:
        SetupError: a flusher of one of them is alive.
        UnavailableError: a server went away; nothing is lost, adopt again.
    """
    link, table, config = ground
    before = await sides(ground)
    if before.joined:
        return None
    if before.nats_flusher or before.sql_flusher:
        alive = before.nats_flusher and f"this NATS is flushed by {before.nats_flusher}"
        alive = alive or f"this PostgreSQL was written to by {before.sql_flusher}"
        raise SetupError(alive, hint=f"stop every process of both stores, wait {limits.FOREIGN_FLUSHER_S} s, repeat")
    names = config.names
    buckets = await ensure(link, names, config.kv, cache_ttl_s=config.cache.ttl_s)
    found = await look(link, names, config.kv.deadline_ms)
    stream, generation, from_ms = StateStream(link, names), link.generation, link.server_now_ms()
    work = _Rewriting(ground, stream, found.epochs or Epochs("", "", (0,), (0,)))
    await work.all()
    rows = await table.epochs()
    newest = rows[-1] if rows else None
    number = max(before.nats_epoch, newest.epoch if newest else 0) + 1
    new = NewEpoch(from_ms * 1000, str(uuid4()), found.claim.stream_created, "", "", "adopted")
    if link.generation != generation:
        raise UnavailableError("the connection to NATS was replaced meanwhile", hint="repeat: cenote adopt")
    await hand_over(link, CounterTable(table.db), names, str(new.store_id))
    if not await table.adopt(newest, new, number, found.claim.home):
        raise UnavailableError("another process began an epoch meanwhile", hint="repeat: cenote adopt")
    await _tell(stream, await table.epochs(), found.claim.stream_created)
    await mark(link, buckets, str(new.store_id))
    return Adopted(str(new.store_id), number, work.entries, work.replaced, work.blobs)


async def _tell(stream: StateStream, rows: list[EpochRow], created: str) -> None:
    numbers, starts = tuple(row.epoch for row in rows), tuple(row.from_us for row in rows)
    epochs = Epochs(rows[-1].store_id, created, numbers, starts)
    await stream.update_metadata(epochs.metadata() | {AWAY_KEY: ""})


class _Rewriting:
    """Every live entry once more, and the rows that it will replace put aside."""

    def __init__(self, ground: Ground, stream: StateStream, epochs: Epochs) -> None:
        self._table = ground.table
        self._timeout_ms = ground.config.kv.request_timeout_ms
        self._stream = stream
        self._epochs = epochs
        self.entries = self.replaced = self.blobs = 0

    async def all(self) -> None:
        """Up to what the stream held at the beginning: what comes after it is written anew already."""
        last = (await self._stream.info()).last_seq
        page: list[Message] = []
        async for message in self._stream.live(self._stream.prefix + ">"):
            if message.sequence > last:
                break
            page.append(message)
            if len(page) == _PAGE:
                await self._some(page)
                page = []
        await self._some(page)

    async def _some(self, page: list[Message]) -> None:
        fresh = [message for message in page if self._believed(message)]
        await self._put_aside(fresh)
        sent = [
            self._stream.publish_nowait(
                message.subject.encode(), _header(message), message.payload, self._timeout_ms, message.sequence
            )
            for message in fresh
        ]
        for reply in await asyncio.gather(*sent):
            try:
                sequence_of(reply)
                self.entries += 1
            except WrongSequence:
                continue  # somebody writes all the same; that entry is younger than the new epoch

    def _believed(self, message: Message) -> bool:
        """A clean copy that came too late hides nothing, and must not become a write (I10)."""
        try:
            stored = entries.from_message(message, self._epochs)
        except CenoteError:
            return True  # unreadable to us: the flusher's matter
        self.blobs += stored.codec == entries.BLOB
        return entries.believed(stored, message)

    async def _put_aside(self, page: list[Message]) -> None:
        wanted: dict[tuple[UUID, str], Stored | None] = {}
        for message in page:
            token, _, key_token = message.subject[len(self._stream.prefix) :].partition(".")
            try:
                pair = keys.decode_agent(token).id, keys.sql_key(keys.decode_token(key_token))
                wanted[pair] = entries.from_message(message, self._epochs)
            except CenoteError:
                continue
        there = await self._table.versions(wanted)
        replaced = [pair for pair in there if not await self._same(pair, wanted[pair])]
        self.replaced += await self._table.put_aside(replaced, _REPLACED)

    async def _same(self, pair: tuple[UUID, str], stored: Stored | None) -> bool:
        row = await self._table.read(*pair)
        if row is None or row.deleted or stored is None:
            return row is None or row.deleted
        held = entries.from_row(row)
        try:
            return not stored.deleted and _plain(held) == _plain(stored)
        except CenoteError:
            return False


def _plain(stored: Stored) -> Any:
    """A blob's reference, or the value as text, for True is not 1; jsonb keeps no order of keys."""
    return stored.body if stored.codec == entries.BLOB else repr(_sorted(value.decode(stored.codec, stored.body)))


def _sorted(held: Any) -> Any:
    if isinstance(held, dict):
        return {name: _sorted(held[name]) for name in sorted(held)}
    return [_sorted(one) for one in held] if isinstance(held, list) else held


def _header(message: Message) -> bytes:
    line = header_value(message.header, b"Cenote: ")
    if line is None:
        return b""
    try:
        envelope = entry.parse(line)
        lines = entry.header(envelope.codec, envelope.op, envelope.expires_ms)
    except CenoteError:
        lines = b"Cenote: " + line + b"\r\n"
    return lines + (entries.TOMBSTONE if b"KV-Operation: DEL" in message.header else b"")
