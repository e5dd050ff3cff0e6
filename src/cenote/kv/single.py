"""One entry of a TTL bucket, read and replaced by compare-and-set: the ground that leases stand on."""

from cenote.kv.link import Link
from cenote.kv.message import Message
from cenote.kv.stream import message_of, sequence_of
from cenote.naming import Names

_TIMEOUT_MS = 1_000


class SingleEntry:
    """A key of our own in a bucket; it never dies of age."""

    def __init__(self, link: Link, names: Names, bucket: str, key: str) -> None:
        self._link = link
        self._subject = (names.subject(bucket) + key).encode("ascii")
        self._get = b"$JS.API.DIRECT.GET.%b.%b" % (names.stream(bucket).encode(), self._subject)

    async def read(self) -> Message | None:
        """The entry, or None. Raises UnavailableError, AnswerLost."""
        return message_of(await self._link.request(self._get, b"", b"", _TIMEOUT_MS))

    async def write(self, payload: bytes, *, expected: int) -> int:
        """Replace the entry whose sequence is `expected` (0: there is none); the new sequence.

        Raises:
            WrongSequence: it has another one.
            UnavailableError, AnswerLost: as for every request.
        """
        header = b"Nats-TTL: never\r\nNats-Expected-Last-Subject-Sequence: %d\r\n" % expected
        return sequence_of(await self._link.request(self._subject, header, payload, _TIMEOUT_MS))
