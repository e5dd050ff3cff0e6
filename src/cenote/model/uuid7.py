"""Ids that sort by the time they were made: UUIDv7 (RFC 9562, section 5.7)."""

import os
import threading
import time
from uuid import UUID

_lock = threading.Lock()
_last = 0

_RANDOM_BITS = 74  # behind 48 bits of milliseconds; version and variant take 6
_STEP_BITS = 32


def uuid7() -> UUID:
    """A new one, above every one that this process has made before (RFC 9562, 6.2, method 2: a random step)."""
    global _last
    now = (time.time_ns() // 1_000_000) << _RANDOM_BITS
    entropy = int.from_bytes(os.urandom(10), "big")
    with _lock:
        fresh = now | (entropy >> 6)
        _last = fresh if fresh > _last else _last + 1 + (entropy & ((1 << _STEP_BITS) - 1))
        number = _last
    time_ms, rest = number >> _RANDOM_BITS, number & ((1 << _RANDOM_BITS) - 1)
    high, low = rest >> 62, rest & ((1 << 62) - 1)
    return UUID(int=(time_ms << 80) | (7 << 76) | (high << 64) | (0b10 << 62) | low)
