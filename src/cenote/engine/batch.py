"""From delivered messages to the rows of one flush (I7; flow rules 14, 22).

Newest sequence per key wins inside a batch; clean copies, once a durable has been through what was there when it began,
and our own reserved entries are acknowledged without SQL;
what cannot be read is told apart: a newer format is offered again later, anything else is poison.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import msgspec

from cenote import limits
from cenote.engine import entries
from cenote.engine.epoch import Epochs
from cenote.errors import CodecError, ConsistencyError
from cenote.kv.message import Message, header_value
from cenote.model import key as keys
from cenote.model.entry import Stored, UnknownFormat, Version
from cenote.sql.rows import Row


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """One entry as the durable consumer delivered it; `reply` is where its ack goes."""

    message: Message
    reply: bytes


class Poison(NamedTuple):
    """An entry that SQL cannot hold as it should."""

    row: Row
    reason: str
    envelope: str


class Batch(NamedTuple):
    """What one flush does: rows to commit, entries to quarantine, entries to offer again, and all to acknowledge;
    `rest` did not fit and is for the next batch."""

    rows: list[Row]
    poison: list[Poison]
    later: list[Delivery]
    settled: list[Delivery]
    rest: list[Delivery]
    agents: set[keys.AgentRef]


@lru_cache(maxsize=65_536)
def agent_of(token: str) -> keys.AgentRef | None:
    """The agent of a subject's token; None when it is nobody's."""
    try:
        return keys.decode_agent(token)
    except CodecError:
        return None


def build(deliveries: Iterable[Delivery], epochs: Epochs, prefix_length: int, first_pass: int) -> Batch:
    """Sort deliveries into a batch. Pure: touches no server.

    Clean copies up to the sequence `first_pass` go to SQL under their original version: what they were made from may
    be lost there (flow rule 5).

    A batch ends when its texts exceed `limits.FLUSH_BYTES_MAX`: small compressed entries may be large texts, and a
    statement must stay within PostgreSQL's time limit (I13).
    """
    batch = Batch([], [], [], list(deliveries), [], set())
    newest: dict[str, Delivery] = {}
    for delivery in batch.settled:
        subject = delivery.message.subject
        other = newest.get(subject)
        if other is None or other.message.sequence < delivery.message.sequence:
            newest[subject] = delivery
    agents: dict[str, keys.AgentRef] = {}
    text_bytes = 0
    for subject, delivery in newest.items():
        if text_bytes > limits.FLUSH_BYTES_MAX:
            batch.rest.append(delivery)
            continue
        token, _, key_token = subject[prefix_length:].partition(".")
        agent = agent_of(token)
        if agent is not None and _sort(batch, delivery, agent, key_token, epochs, first_pass):
            agents[token] = agent
            if batch.rows:
                text_bytes += len(batch.rows[-1].value or "")
    batch.agents.update(agents.values())
    if batch.rest:
        waiting = {id(delivery) for delivery in batch.rest}
        batch.settled[:] = [delivery for delivery in batch.settled if id(delivery) not in waiting]
    return batch


def _sort(
    batch: Batch, delivery: Delivery, agent: keys.AgentRef, key_token: str, epochs: Epochs, first_pass: int
) -> bool:
    """Put one entry where it belongs; whether SQL will have something of the agent. Agents that cannot be decoded, and
    keys, are reserved subjects or foreign ones: nobody can own them, and they are settled like clean copies."""
    try:
        row_key = keys.sql_key(keys.decode_token(key_token))
    except CodecError:
        return False
    stored: Stored | None = None
    try:
        stored = entries.from_message(delivery.message, epochs)
        if stored.clean and (delivery.message.sequence > first_pass or stored.version == entries.ABSENT.version):
            return False
        batch.rows.append(entries.to_row(agent, row_key, stored))
    except UnknownFormat:
        batch.settled.remove(delivery)
        batch.later.append(delivery)
        return False
    except (CodecError, ConsistencyError, ValueError, RecursionError) as error:
        message = delivery.message
        batch.poison.append(Poison(_quarantined(message, agent, row_key, epochs, stored), str(error), _line(message)))
    return True


def _quarantined(message: Message, agent: keys.AgentRef, row_key: str, epochs: Epochs, stored: Stored | None) -> Row:
    version, time_us = Version(_epoch(epochs, message.time_us), message.sequence), message.time_us
    if stored is not None and stored.clean:
        version, time_us = stored.version, stored.written_us
    return Row(
        agent.id, row_key, None, message.payload, version.revision, version.epoch, time_us, False, True, None
    )  # fmt: skip


def _epoch(epochs: Epochs, time_us: int) -> int:
    """By its time, as for every entry (rule 3): the newest would let what a rewind brought back outrank its row."""
    try:
        return epochs.at(time_us)
    except ConsistencyError:
        return epochs.numbers[0]


def _line(message: Message) -> str:
    return (header_value(message.header, b"Cenote: ") or b"").decode("ascii", "backslashreplace")
