"""What a process counts while it works: whole numbers, and tallies of fixed size."""

from collections import Counter
from dataclasses import dataclass, field

from cenote.engine.tally import BATCH_ROWS, FLUSH_MS, Tally
from cenote.model.entry import Stored, Tier

FLUSH_ERRORS = ("UnavailableError", "TransactionError", "DataRefused")
"""What a flush meets; told as 0 from the beginning, so that the first one is a change."""


@dataclass
class Counts:
    """What this process did since it opened the store."""

    writes: int = 0
    hits_l1: int = 0
    hits_kv: int = 0
    hits_sql: int = 0
    misses: int = 0
    hydrated: int = 0
    hydrations_refused: int = 0
    evicted: int = 0
    expired: int = 0
    collected: int = 0
    blobs_collected: int = 0
    conflicts: int = 0
    flushed: int = 0
    delivered: int = 0
    commits: int = 0
    flush_ms: float = 0.0
    quarantined: int = 0
    unknown_formats: int = 0
    flush_tally: Tally = field(default_factory=lambda: Tally(FLUSH_MS))
    batch_tally: Tally = field(default_factory=lambda: Tally(BATCH_ROWS))
    flush_errors: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(FLUSH_ERRORS, 0)))
    repairs: Counter[str] = field(default_factory=Counter)
    differences: Counter[str] = field(default_factory=Counter)

    def hit(self, found: tuple[Stored, Tier] | None) -> None:
        """Count an answered read by the tier that answered it."""
        if found is None:
            self.misses += 1
        elif found[1] is Tier.DISTRIBUTED_KV:
            self.hits_kv += 1
        else:
            self.hits_sql += 1
