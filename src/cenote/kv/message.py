"""Stored entries as they come over the wire, taken apart with `bytes.find`.

The server appends its own header lines after the publisher's, in a fixed order (Nats-Stream, Nats-Subject,
Nats-Sequence, Nats-Time-Stamp); so the last occurrence is the true one, whatever a publisher wrote (seen: a
forged `Nats-Sequence` comes back before the server's).
"""

import msgspec

from cenote.kv.clock import parse_time_us

_SUBJECT = b"\r\nNats-Subject: "
_SEQUENCE = b"\r\nNats-Sequence: "
_TIME = b"\r\nNats-Time-Stamp: "
_LAST = b"\r\nNats-Last-Sequence: "


class Message(msgspec.Struct, frozen=True, gc=False):
    """One stored entry; header is the raw block, server's lines included, b"" when there is none."""

    subject: str
    sequence: int
    time_us: int
    header: bytes
    payload: bytes


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """What the reply subject of a delivered message says."""

    sequence: int
    time_us: int
    deliveries: int


def header_value(header: bytes, name: bytes) -> bytes | None:
    """The value of the first line with this name (`b"Cenote: "`, colon and blank included), or None."""
    start = header.find(b"\r\n" + name)
    if start < 0:
        return None
    start += len(name) + 2
    return header[start : header.find(b"\r\n", start)]


def last_value(header: bytes, name: bytes) -> bytes | None:
    """The same of the last such line: for the server's own names."""
    start = header.rfind(b"\r\n" + name)
    if start < 0:
        return None
    start += len(name) + 2
    return header[start : header.find(b"\r\n", start)]


def server_lines(header: bytes) -> tuple[bytes, int, int]:
    """Subject, sequence and time (µs) from the server's lines of a direct get."""
    time = header.rindex(_TIME)
    sequence = header.rindex(_SEQUENCE, 0, time)
    subject = header.rindex(_SUBJECT, 0, sequence)
    begin = time + 19
    return (
        header[subject + 16 : sequence],
        int(header[sequence + 17 : time]),
        parse_time_us(header[begin : header.index(b"\r\n", begin)]),
    )


def republished_sequence(header: bytes) -> int:
    """The sequence of a republished entry: all that its own writer needs of it."""
    time = header.rindex(_TIME)
    return int(header[header.rindex(_SEQUENCE, 0, time) + 17 : time])


def republished(header: bytes) -> tuple[int, int]:
    """The subject's sequence before this entry (0: none) and its time (µs); these two lines are the last."""
    last = header.rindex(_LAST)
    return int(header[last + 22 : -4]), parse_time_us(header[header.rindex(_TIME, 0, last) + 19 : last])


def stored(header: bytes, payload: bytes) -> Message:
    """The entry in an answer of the direct get API."""
    subject, sequence, time_us = server_lines(header)
    return Message(subject.decode(), sequence, time_us, header, payload)


def delivery(reply: bytes) -> Delivery:
    """Take an ack subject apart.

    `$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<consumer sequence>.<time ns>.<pending>`, or the
    longer form with domain and account hash before the stream (and, maybe, a token at the end).
    """
    words = reply.split(b".")
    at = 4 if len(words) == 9 else 6
    return Delivery(int(words[at + 1]), int(words[at + 3]) // 1000, int(words[at]))
