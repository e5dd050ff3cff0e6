"""Prevent a rewind where the server is ours: empty a NATS store that did not stop cleanly into SQL, and skip numbers
that may have been given out before (flow.md, head; I1, I3).

After a power loss the stream may lack its newest messages and would give their sequences to others; its consumers'
state may be newer than the stream itself, so their acks say nothing. Before the port is told to anyone every live
entry goes through the fence, then the stream is purged past anything that it can ever have used.
"""

import logging
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

from cenote import limits
from cenote.config import Config
from cenote.engine import entries
from cenote.engine.batch import Batch, Delivery, Poison, build
from cenote.engine.belonging import belongs, settle
from cenote.engine.epoch import Epochs
from cenote.engine.fence import pass_fence
from cenote.engine.writer_id import new_writer_id
from cenote.errors import CodecError, UnavailableError
from cenote.kv.link import Link
from cenote.kv.stream import StateStream
from cenote.model import key as keys
from cenote.naming import AGENT_STATE, Names
from cenote.sql.errors import DataRefused
from cenote.sql.rows import Flushed, GcFloor, Guard, Heartbeat, Row
from cenote.sql.state import StateTable

log = logging.getLogger("cenote.engine")

_BATCH = 500


@dataclass
class Recovered:
    """What a recovery moved: live entries read, entries quarantined."""

    entries: int = 0
    quarantined: int = 0


async def recover(link: Link, table: StateTable, names: Names, config: Config) -> Recovered:
    """Drain one namespace's stream into SQL and purge it past its high water.

    Raises:
        CodecError: an entry of a newer format, which only a newer cenote can carry over; nothing was purged.
        UnavailableError, SetupError: a server went away, or does not belong to the other.
    """
    stream = StateStream(link, names)
    epochs, info = await settle(link, stream, table, names, config)
    guard = await _take_over(table, epochs, stream)
    recovered = Recovered()
    async for batch in _batches(stream, epochs, names):
        await _commit(table, batch, guard, epochs, recovered)
    flushed = await table.high_water(epochs.newest)
    high_water = max(info.last_seq, flushed.sequence if flushed else 0)
    await stream.purge_below(high_water + limits.REWIND_GAP, generation=link.generation)
    log.info("recovered %s: %d entries drained into PostgreSQL", names.stream(AGENT_STATE), recovered.entries)
    return recovered


async def _take_over(table: StateTable, epochs: Epochs, stream: StateStream) -> Guard:
    """An incarnation of our own: whoever flushes under another one from now on is refused, and so are we when somebody
    takes over from us (F-inc)."""
    newest = await belongs(table, epochs, stream)
    guard = Guard(newest.epoch, f"recovery-{new_writer_id()}")
    if not await table.set_incarnation(newest.epoch, newest.incarnation or "", guard.incarnation):
        raise _overtaken()
    return guard


def _held(overtaken: list[Row] | None) -> None:
    """A refused guard wrote nothing: nothing may be purged then."""
    if overtaken is None:
        raise _overtaken()


def _overtaken() -> UnavailableError:
    return UnavailableError("another process changed the incarnation during the recovery; the next start tries again")


async def _batches(stream: StateStream, epochs: Epochs, names: Names) -> AsyncIterator[Batch]:
    prefix = names.subject(AGENT_STATE)
    waiting: list[Delivery] = []
    async for message in stream.live(prefix + ">"):
        waiting.append(Delivery(message, b""))
        if len(waiting) >= _BATCH:
            batch = build(waiting, epochs, len(prefix), sys.maxsize)
            waiting = batch.rest
            yield batch
    while waiting:
        batch = build(waiting, epochs, len(prefix), sys.maxsize)
        waiting = batch.rest
        yield batch


async def _commit(table: StateTable, batch: Batch, guard: Guard, epochs: Epochs, recovered: Recovered) -> None:
    if batch.later:
        raise CodecError(
            f"{len(batch.later)} entries were written by a newer cenote", hint="start that version once more"
        )
    recovered.entries += len(batch.settled)
    for item in batch.poison:
        await _quarantine(table, item, guard, _heartbeat([item.row], epochs), recovered)
    if not batch.rows:
        return
    heartbeat = _heartbeat(batch.rows, epochs)

    async def write(rows: list[Row], looked: GcFloor | None) -> Flushed | None:
        return await table.flush(rows, guard, heartbeat, looked=looked)

    try:
        _held(await pass_fence(table, batch.rows, write, _live))
    except DataRefused:
        for row in batch.rows:
            try:
                _held(await pass_fence(table, [row], write, _live))
            except DataRefused as refused:
                await _quarantine(table, Poison(entries.exact(row), str(refused), ""), guard, heartbeat, recovered)
    named = batch.agents - keys.RESERVED_AGENTS.keys()
    await table.register([(agent.id, keys.sql_key(agent.text)) for agent in named])


async def _quarantine(
    table: StateTable, item: Poison, guard: Guard, heartbeat: Heartbeat, recovered: Recovered
) -> None:
    async def write(_: list[Row], looked: GcFloor | None) -> Flushed | None:
        return await table.flush_one_quarantined(
            item.row, guard, heartbeat, reason=item.reason, envelope=item.envelope, looked=looked
        )

    _held(await pass_fence(table, [item.row], write, _live))
    recovered.quarantined += 1


async def _live(_: Row) -> bool:
    """Nobody else may write yet: what was read from the stream is what it holds."""
    return True


def _heartbeat(rows: list[Row], epochs: Epochs) -> Heartbeat:
    return Heartbeat("recovery", epochs.store_id, max(row.version for row in rows), max(row.kv_time_us for row in rows))
