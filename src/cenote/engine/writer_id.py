"""Writer ids: who wrote an entry, and half of each operation's id (I12)."""

import os
import time


def new_writer_id() -> str:
    """16 hex digits that no other process has used: time in ms and 5 random bytes."""
    return f"{time.time_ns() // 1_000_000 & 0xFFFFFF:06x}{os.urandom(5).hex()}"
