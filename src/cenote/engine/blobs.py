"""Values too large for one KV entry (flow rule 20): their bytes go to `agents.blobs` first, KV holds a reference.

The blob is committed before the entry is published and is never visible by key; order and fence are the entry's. So a
crash between the two leaves an orphan that nobody sees, and never a reference without a blob.
"""

import hashlib
from uuid import UUID, uuid4

import msgspec

from cenote.engine.entries import BLOB
from cenote.errors import ConsistencyError
from cenote.model.entry import Stored
from cenote.sql.state import StateTable


class _Reference(msgspec.Struct):
    id: UUID
    digest: str  # BLAKE2b-256 of the bytes, in hex
    codec: str
    size: int


_decoder = msgspec.json.Decoder(_Reference)


class Blobs:
    """Stores and resolves the bytes behind references."""

    def __init__(self, table: StateTable) -> None:
        self._table = table

    async def put(self, codec: str, body: bytes) -> tuple[str, bytes]:
        """Commit the bytes; the codec and body of the reference that KV is to hold. UnavailableError without SQL."""
        blob_id = uuid4()
        await self._table.insert_blob(blob_id, body)
        return BLOB, msgspec.json.encode(_Reference(blob_id, _digest(body), codec, len(body)))

    async def resolve(self, stored: Stored) -> Stored:
        """The entry with the bytes that its reference means.

        Raises:
            ConsistencyError: the blob is missing or is not what was written; never taken for an absent key.
            UnavailableError: PostgreSQL cannot be reached.
        """
        reference = _decoder.decode(stored.body)
        body = await self._table.read_blob(reference.id)
        if body is None:
            raise ConsistencyError(f"I1: the blob {reference.id} of {reference.size} bytes is missing")
        if _digest(body) != reference.digest:
            raise ConsistencyError(f"I1: the blob {reference.id} is not what was written")
        return stored._replace(codec=reference.codec, body=body)


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=32).hexdigest()
