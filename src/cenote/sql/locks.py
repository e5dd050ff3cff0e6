"""Advisory locks, keyed by purpose and namespace. Of a transaction (`pg_advisory_xact_lock`), for a session's lock
would be lost on its way through a pooler, and left behind by a cancelled task; but where an index is made or dropped
beside the flushes, which cannot be done in a transaction (`sql/search.py`)."""

from hashlib import blake2b

from cenote.naming import Names


def advisory_key(names: Names, purpose: str) -> int:
    """A 64-bit key that no other purpose or namespace of the same database has."""
    text = f"cenote/{names.schema_name('agents')}/{purpose}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
