"""Atomic batches: messages that the stream takes all or none (nats-server 2.12; flow rule 24).

The server puts the members aside until the last one comes, which says so; only then conditions are looked at, and all
are stored under sequences without a hole between them, or none (seen on 2.15: 10071 and 10077 answer the last one).
A batch that is not finished within 10 s is dropped. What is not the last one is answered with nothing, if it asks.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import NamedTuple

from cenote import limits, points
from cenote.errors import ConsistencyError
from cenote.kv.errors import AnswerLost, JsError, NotSent, js_error
from cenote.kv.message import header_value
from cenote.kv.mux import Reply
from cenote.kv.stream import StateStream, sequence_of

ATOMIC_SINCE = (2, 12, 1)
"""The first nats-server whose batches are used; an older one would store the members one by one."""

MEMBER = b"\r\nNats-Batch-Id: "
_COMMIT = b"Nats-Batch-Commit"
_EXPECTED = b"Nats-Expected-Last-Subject-Sequence: %d\r\n"


class Member(NamedTuple):
    """One message; `expected` is the last sequence that its subject must have."""

    wire: bytes
    header: bytes
    payload: bytes
    expected: int | None = None


def is_last(header: bytes) -> bool:
    """Whether a member of a batch, as it is stored, is its last one."""
    return header_value(header, _COMMIT + b": ") is not None


async def publish_batch(
    stream: StateStream, name: str, members: Sequence[Member], timeout_ms: int, *, generation: int
) -> int:
    """Store all members, or none; the sequence of the first one, which those of the others follow.

    name: of the batch, 64 characters at most; no other that is open has it. generation: of the connection under which
    the expected sequences were read.

    Raises:
        WrongSequence, StreamFull, NoSpace, NoBatches, JsError: refused, nothing stored.
        NotSent, NoResponders, JsUnavailable: nothing stored.
        AnswerLost: unknown; only the last member's answer can be lost in this way.
    """
    link = stream.link
    head = b"Nats-Batch-Id: %b\r\nNats-Batch-Sequence: " % name.encode("ascii")
    asked: list[asyncio.Future[Reply]] = []
    size = 0
    try:
        for number, member in enumerate(members[:-1], 1):
            _demand(stream, generation)
            header = b"%b%b%d\r\n" % (_lines(member), head, number)
            size += len(header) + len(member.payload)
            if number == 1 or size > limits.ATOMIC_WINDOW_BYTES:
                asked.append(stream.publish_nowait(member.wire, header, member.payload, timeout_ms))
            else:
                link.send(member.wire, b"", member.payload, header)
            if size > limits.ATOMIC_WINDOW_BYTES:
                await _taken(asked[-1])
                size = 0
        if points.armed:
            await points.hit("batch.sent")
        _demand(stream, generation)
        last = members[-1]
        header = b"%b%b%d\r\n%b: 1\r\n" % (_lines(last), head, len(members), _COMMIT)
        asked.append(stream.publish_nowait(last.wire, header, last.payload, timeout_ms))
        try:
            reply = await asked[-1]
            end = sequence_of(reply)
        except (AnswerLost, JsError) as error:
            _told_before(asked[:-1], error)
            raise
    finally:
        for answer in asked:
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # told to nobody: what decides was raised
    if json.loads(reply.payload).get("count") != len(members):
        raise ConsistencyError(f"I12: of a batch of {len(members)} the server says {reply.payload!r}")
    return end - len(members) + 1


def _lines(member: Member) -> bytes:
    return member.header if member.expected is None else member.header + _EXPECTED % member.expected


def _demand(stream: StateStream, generation: int) -> None:
    """Sequences die with their connection (F-conn), and so does a batch that was begun over it."""
    stream.demand_ours()
    if stream.link.generation != generation:
        raise NotSent("reconnected before the batch was sent", tier="DISTRIBUTED_KV")


async def _taken(answer: asyncio.Future[Reply]) -> None:
    """The server has put aside everything up to here. Whatever is lost here: the last member was not sent."""
    try:
        reply = await answer
    except AnswerLost as error:
        raise NotSent("a batch was not finished: nothing of it is stored", tier="DISTRIBUTED_KV") from error
    _demand_taken(reply)


def _demand_taken(reply: Reply) -> None:
    if reply.payload:
        error = json.loads(reply.payload)["error"]
        raise js_error(error.get("code", 0), error.get("err_code", 0), error.get("description", ""))


def _told_before(answers: Sequence[asyncio.Future[Reply]], error: Exception) -> None:
    """The first refusal tells why; those after it only say that a member is missing. It also proves, where the last
    answer was lost, that nothing is stored."""
    for answer in answers:
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            try:
                _demand_taken(answer.result())
            except JsError as first:
                raise first from error
