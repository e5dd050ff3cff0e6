"""From delivered messages to the rows of one flush (I7; flow rules 14, 22).

Newest sequence per key wins inside a batch; clean copies and our own reserved entries are acknowledged without SQL;
what cannot be read is told apart: a newer format is offered again later, anything else is poison.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from cenote.engine import entries
from cenote.engine.epoch import Epochs
from cenote.errors import CodecError, ConsistencyError
from cenote.kv.message import Message, header_value
from cenote.model import key as keys
from cenote.model.entry import UnknownFormat
from cenote.sql.rows import Row


class Delivery(NamedTuple):
    """One entry as the durable consumer delivered it; `reply` is where its ack goes."""

    subject: str
    sequence: int
    time_us: int
    header: bytes
    payload: bytes
    reply: bytes


class Poison(NamedTuple):
    """An entry that SQL cannot hold as it should."""

    row: Row
    reason: str
    envelope: str


class Batch(NamedTuple):
    """What one flush does: rows to commit, entries to quarantine, entries to offer again, and all to acknowledge."""

    rows: list[Row]
    poison: list[Poison]
    later: list[Delivery]
    settled: list[Delivery]
    agents: set[keys.AgentRef]


@lru_cache(maxsize=65_536)
def _agent(token: str) -> keys.AgentRef | None:
    try:
        return keys.decode_agent(token)
    except CodecError:
        return None


def build(deliveries: Iterable[Delivery], epochs: Epochs, prefix_length: int) -> Batch:
    """Sort deliveries into a batch. Pure: touches no server."""
    newest: dict[str, Delivery] = {}
    batch = Batch([], [], [], [], set())
    for delivery in deliveries:
        batch.settled.append(delivery)
        other = newest.get(delivery.subject)
        if other is None or other.sequence < delivery.sequence:
            newest[delivery.subject] = delivery
    for subject, delivery in newest.items():
        token, _, key_token = subject[prefix_length:].partition(".")
        agent = _agent(token)
        if agent is None:
            continue  # a reserved subject or a foreign one: no agent can own it
        _sort(batch, delivery, agent, key_token, epochs)
    batch.rows.sort(key=lambda row: (row.agent_id.bytes, row.key))
    return batch


def _sort(batch: Batch, delivery: Delivery, agent: keys.AgentRef, key_token: str, epochs: Epochs) -> None:
    try:
        row_key = keys.sql_key(keys.decode_token(key_token))
    except CodecError:
        return
    try:
        stored = entries.from_message(Message(*delivery[:5]), epochs)
        if stored.clean:
            return
        batch.rows.append(entries.to_row(agent, row_key, stored))
    except UnknownFormat:
        batch.settled.remove(delivery)
        batch.later.append(delivery)
        return
    except (CodecError, ConsistencyError) as error:
        batch.poison.append(Poison(_quarantined(delivery, agent, row_key, epochs), str(error), _line(delivery)))
    batch.agents.add(agent)


def _quarantined(delivery: Delivery, agent: keys.AgentRef, row_key: str, epochs: Epochs) -> Row:
    return Row(
        agent.id, row_key, None, delivery.payload, delivery.sequence, epochs.at(delivery.time_us),
        delivery.time_us, False, True, None,
    )  # fmt: skip


def _line(delivery: Delivery) -> str:
    return (header_value(delivery.header, b"Cenote: ") or b"").decode("ascii", "backslashreplace")
