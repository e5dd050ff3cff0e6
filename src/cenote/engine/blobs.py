"""Values too large for one KV entry (flow rule 20): their bytes go to `agents.blobs` first, KV holds a reference.

The blob is committed before the entry is published and is never visible by key; order and fence are the entry's. So a
crash between the two leaves an orphan that nobody sees, and never a reference without a blob; the collector removes it.
A blob belongs to one key and is referred to by one write, so what referred to it is as old as that write (rule 20).
"""

import asyncio
import hashlib
from typing import NamedTuple, TypeVar
from uuid import UUID, uuid4

import msgspec

from cenote import limits
from cenote.engine.entries import Target
from cenote.errors import ConsistencyError, UnavailableError
from cenote.model.entry import Stored
from cenote.model.kept import Kept
from cenote.sql.state import StateTable

Holder = TypeVar("Holder", Stored, Kept)


class _Reference(msgspec.Struct):
    id: UUID
    digest: str  # BLAKE2b-256 of the bytes, in hex
    codec: str
    size: int


_decoder = msgspec.json.Decoder(_Reference)


class Placed(NamedTuple):
    """A blob that was committed for an entry yet to be published."""

    id: UUID
    digest: str
    codec: str
    reference: bytes


class Blobs:
    """Stores and resolves the bytes behind references."""

    def __init__(self, table: StateTable) -> None:
        self._table = table
        self._writes = asyncio.Semaphore(limits.BLOB_WRITES_MAX)

    async def put(self, target: Target, codec: str, body: bytes, timeout_ms: int, before: Placed | None) -> Placed:
        """Commit the bytes, for which KV is to hold the reference.

        Args:
            target: whose value it is.
            codec, body: the value.
            timeout_ms: how long PostgreSQL may take.
            before: what the same operation committed for an attempt that was surely not published: used again if the
                bytes are the same, removed otherwise.

        Raises:
            UnavailableError: PostgreSQL did not take it.
        """
        digest = _digest(body)
        if before is not None and (before.digest, before.codec) == (digest, codec):
            return before
        blob_id = uuid4()
        async with self._writes:
            try:
                async with asyncio.timeout(timeout_ms / 1000):
                    if before is not None:
                        await self._table.drop_blob(before.id)
                    await self._table.insert_blob(blob_id, body, target.agent.id, target.row_key)
            except TimeoutError as error:
                raise UnavailableError("PostgreSQL did not take a large value in time", tier="RELATIONAL_DB") from error
        return Placed(blob_id, digest, codec, msgspec.json.encode(_Reference(blob_id, digest, codec, len(body))))

    async def resolve(self, stored: Holder) -> Holder:
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
        return msgspec.structs.replace(stored, codec=reference.codec, body=body)


def reference_id(stored: Stored | Kept) -> UUID:
    """The blob that a reference names."""
    return _decoder.decode(stored.body).id


def moved(reference: bytes, to: UUID) -> tuple[UUID, bytes]:
    """The blob that a reference names, and the reference to a copy of it."""
    words = _decoder.decode(reference)
    return words.id, msgspec.json.encode(msgspec.structs.replace(words, id=to))


def same_bytes(reference: bytes) -> bytes:
    """Equal for references to equal bytes, whichever blobs hold them."""
    words = _decoder.decode(reference)
    return f"{words.digest}.{words.codec}.{words.size}".encode()


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=32).hexdigest()
