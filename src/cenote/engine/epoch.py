"""Epochs: which life of the stream a sequence belongs to (I3; flow rules 3, 4, 8).

A stream that was recreated counts from 1 again, so a bare sequence says nothing about order. An epoch is a life of
the stream; a version is (epoch, sequence). `agents.epochs` is authoritative for which epochs there are and from which
KV server time on; the stream's metadata carries a copy, so that a process which never talks to PostgreSQL knows them.
A message's epoch is a function of its server time alone, never of what a client believes at the moment.
"""

from bisect import bisect_right
from typing import NamedTuple, Self

from cenote.errors import ConsistencyError

STORE_KEY = "cenote.store"
CREATED_KEY = "cenote.created"
EPOCHS_KEY = "cenote.epochs"
DURABLE_KEY = "cenote.durable"
MENDED_KEY = "cenote.mended"
"""The epoch and the start of the KV server for which KV has been compared with SQL (F-wait)."""
FORMAT_KEY = "cenote.format"
"""The newest format of entries that every process of the store reads, as `agents.meta` has it (flow rule 22)."""
AWAY_KEY = "cenote.away"
"""The store that this stream's database was given to, by `cenote adopt`, together with another stream."""


class Epochs(NamedTuple):
    """The lives of one store's stream: epoch `numbers[i]` begins at KV server time `starts_us[i]`."""

    store_id: str
    created: str
    numbers: tuple[int, ...]
    starts_us: tuple[int, ...]

    @property
    def newest(self) -> int:
        """The epoch of what is written now."""
        return self.numbers[-1]

    def at(self, time_us: int) -> int:
        """The epoch of a message with this KV server time, in µs since 1970."""
        if time_us >= self.starts_us[-1]:
            return self.numbers[-1]
        index = bisect_right(self.starts_us, time_us) - 1
        if index < 0:
            raise ConsistencyError(f"I3: a message of {time_us} µs is older than the first epoch")
        return self.numbers[index]

    def metadata(self) -> dict[str, str]:
        """As the stream's metadata carries it."""
        pairs = zip(self.numbers, self.starts_us, strict=True)
        return {
            STORE_KEY: self.store_id,
            CREATED_KEY: self.created,
            EPOCHS_KEY: ",".join(f"{number}:{start}" for number, start in pairs),
        }

    def differ(self, metadata: dict[str, str], created: str) -> bool:
        """Whether the stream says anything else of itself, or that its database was given away."""
        return bool(metadata.get(AWAY_KEY)) or self.from_metadata(metadata, created) != self

    @classmethod
    def from_metadata(cls, metadata: dict[str, str], created: str) -> Self | None:
        """What the stream says of itself; None when it says nothing, or speaks of another life than `created`."""
        if metadata.get(CREATED_KEY) != created or EPOCHS_KEY not in metadata:
            return None
        pairs = [pair.split(":") for pair in metadata[EPOCHS_KEY].split(",")]
        return cls(
            metadata[STORE_KEY],
            created,
            tuple(int(pair[0]) for pair in pairs),
            tuple(int(pair[1]) for pair in pairs),
        )
