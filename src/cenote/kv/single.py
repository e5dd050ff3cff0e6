"""One entry of a TTL bucket, read and replaced by compare-and-set: the ground that leases stand on. It is read at the
stream's leader, for a follower may show one that was replaced long ago (flow rule 9)."""

from cenote.kv.lane import Handler
from cenote.kv.link import Link, Subscription
from cenote.kv.message import Message
from cenote.kv.stream import leader_get, sequence_of
from cenote.naming import Names

_TIMEOUT_MS = 1_000


class SingleEntry:
    """A key of our own in a bucket; it never dies of age."""

    def __init__(self, link: Link, names: Names, bucket: str, key: str) -> None:
        self._link = link
        self._subject = (names.subject(bucket) + key).encode("ascii")
        self._stream = names.stream(bucket)

    async def read(self) -> Message | None:
        """The entry, or None. Raises UnavailableError, AnswerLost."""
        body = {"last_by_subj": self._subject.decode("ascii")}
        return await leader_get(self._link, self._stream, body, _TIMEOUT_MS)

    def listen(self, handler: Handler, queue: str = "") -> Subscription:
        """Hear each write as it is published, the refused ones, too; at most once, and nothing of the past. queue: of
        all who name the same one, each write comes to one."""
        return self._link.subscribe(self._subject.decode("ascii"), handler, queue)

    async def write(self, payload: bytes, *, expected: int) -> int:
        """Replace the entry whose sequence is `expected` (0: there is none); the new sequence.

        Raises:
            WrongSequence: it has another one.
            UnavailableError, AnswerLost: as for every request.
        """
        header = b"Nats-TTL: never\r\nNats-Expected-Last-Subject-Sequence: %d\r\n" % expected
        return sequence_of(await self._link.request(self._subject, header, payload, _TIMEOUT_MS))
