"""One process's memory of answers (`tiered.py`)."""

from collections import OrderedDict
from typing import Any, Final, NamedTuple

from cenote.errors import NotFoundError
from cenote.model import value as values

ABSENT: Final = "absent"  # the codec of a negative answer
_OVERHEAD_BYTES: Final = 400  # about what a slot takes beside its texts


class Answer(NamedTuple):
    """An answer as it is kept: its bytes, and the KV server's time at which it is over."""

    codec: str
    body: bytes
    expires_ms: int

    def value(self, key: str) -> Any:
        """A copy of its own for each caller."""
        if self.codec == ABSENT:
            raise NotFoundError(
                f"there is no answer for {key!r}", key=key, hint="that is remembered; `delete` forgets it"
            )
        return values.decode(self.codec, self.body)


class Near:
    """This process's memory of answers: the least recently used one leaves first, and none stays beyond its time."""

    def __init__(self, entries_max: int, bytes_max: int, ttl_ms: int) -> None:
        self._held: OrderedDict[str, tuple[Answer, int]] = OrderedDict()
        self._entries_max, self._bytes_max, self._ttl_ms = entries_max, bytes_max, ttl_ms
        self._bytes = 0

    def get(self, subject: str, now_ms: int) -> Answer | None:
        """The answer, if its time is not over."""
        found = self._held.get(subject)
        if found is None:
            return None
        answer, until_ms = found
        if until_ms <= now_ms:
            self.drop(subject)
            return None
        self._held.move_to_end(subject)
        return answer

    def set(self, subject: str, answer: Answer, now_ms: int) -> None:
        """Hold it, and let go of others for it."""
        self.drop(subject)
        size = _size(subject, answer)
        if answer.expires_ms <= now_ms or size > self._bytes_max:
            return
        self._held[subject] = answer, min(answer.expires_ms, now_ms + self._ttl_ms)
        self._bytes += size
        while len(self._held) > self._entries_max or self._bytes > self._bytes_max:
            self.drop(next(iter(self._held)))

    def drop(self, subject: str) -> None:
        """Let go of one."""
        found = self._held.pop(subject, None)
        if found is not None:
            self._bytes -= _size(subject, found[0])

    def clear(self) -> None:
        """Let go of all."""
        self._held.clear()
        self._bytes = 0

    def sweep(self, now_ms: int) -> int:
        """Let go of what is over; how many."""
        over = [subject for subject, (_, until_ms) in self._held.items() if until_ms <= now_ms]
        for subject in over:
            self.drop(subject)
        return len(over)


def _size(subject: str, answer: Answer) -> int:
    return len(subject) + len(answer.body) + _OVERHEAD_BYTES
