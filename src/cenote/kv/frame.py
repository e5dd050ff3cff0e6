"""Client frames of the NATS protocol, PUB and HPUB: docs.nats.io, "NATS Client Protocol"."""

from cenote import limits
from cenote.errors import RejectedError

_BLANK, _NEWLINE = b" \n"  # as ints: one memchr each, a fifth of the time of a one-byte text


def frame(subject: bytes | str, reply: bytes, header: bytes, payload: bytes, most: int) -> bytes:
    """One message for the wire.

    Args:
        reply: b"" or a blank and the subject.
        header: b"" or whole lines without preface and blank line.
        most: bytes of header and payload that the server takes.

    Raises:
        RejectedError: too long for the server, or a subject that would end the connection.
    """
    name = subject.encode() if isinstance(subject, str) else subject
    if len(name) > limits.REQUEST_SUBJECT_BYTES_MAX or _BLANK in name or _NEWLINE in name:
        raise RejectedError(f"a subject of {len(name)} bytes, or with blanks, would end the connection")
    if header:
        head = len(header) + 12  # "NATS/1.0\r\n" before it, a blank line after it
        total = head + len(payload)
        made = b"HPUB %b%b %d %d\r\nNATS/1.0\r\n%b\r\n%b\r\n" % (name, reply, head, total, header, payload)
    else:
        total = len(payload)
        made = b"PUB %b%b %d\r\n%b\r\n" % (name, reply, total, payload)
    if total > most:
        raise RejectedError(f"a message of {total} bytes; the server takes up to {most}")
    return made
