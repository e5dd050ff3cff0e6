"""What differs between KV and SQL, proven one by one (flow rules 1, 4, 6, 12, 14, 20, 21).

Only entries that were acknowledged by a flusher are compared: what is above the floor is on its way. A flusher
acknowledges after its commit, so of a settled entry SQL has a row that is at least as new. Whatever seems to differ is
looked at once more, KV's entry at the leader and then SQL's row, because both may have been written since the first
look.
"""

import asyncio
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple
from uuid import UUID

from cenote.engine import entries
from cenote.engine.blobs import moved
from cenote.engine.core import Core, reading
from cenote.engine.entries import Target
from cenote.errors import CodecError
from cenote.kv.message import Message
from cenote.model import key as keys
from cenote.model.entry import Stored, UnknownFormat, Version
from cenote.sql.repairs import Compared, RepairTable
from cenote.sql.rows import Row


class Kind(StrEnum):
    """How KV and SQL may differ in one key."""

    SQL_MISSING = "sql_missing"
    """An acknowledged entry has no row."""
    SQL_OLDER = "sql_older"
    """The row is older than an acknowledged entry."""
    TOMBSTONE = "tombstone"
    """A delete was acknowledged, and the row is still the value before it."""
    CONTENT = "content"
    """Row and entry are of one version, and not equal."""
    KV_OLDER = "kv_older"
    """KV shows an older entry than SQL, or hides a row behind a mark that says there is none."""
    UNREADABLE = "unreadable"
    """An acknowledged entry cannot be read, and SQL does not keep its bytes."""
    BLOB_MISSING = "blob_missing"
    """A reference to a large value, and no such value."""


class Item(NamedTuple):
    """One entry of KV, or one row that KV has no entry of: in every spelling that mending needs."""

    target: Target
    stored: Stored | None
    row: Row | None
    """What SQL should hold; None: it cannot be read."""
    message: Message | None


class Difference(NamedTuple):
    """What differs in one key, and the version that KV shows."""

    kind: Kind
    item: Item


SIDE_BY_SIDE: Final = 32
"""Entries that are looked at, or mended, at a time."""


def item_of(core: Core, message: Message) -> Item | None:
    """What an entry says, and what SQL should hold of it; None for one that is none of ours, or that a newer cenote
    wrote: that is for it to flush (rule 22)."""
    token, key_token = core.split(message.subject)
    try:
        target = core.target(keys.decode_agent(token), keys.decode_token(key_token))
    except CodecError:
        return None
    try:
        stored = entries.from_message(message, core.epochs)
        return Item(target, stored, entries.to_row(target.agent, target.row_key, stored), message)
    except UnknownFormat:
        return None
    except (CodecError, ValueError, RecursionError):
        return Item(target, None, None, message)


class Comparison:
    """Compares some entries with their rows."""

    def __init__(self, core: Core, table: RepairTable) -> None:
        self._core = core
        self._table = table

    async def differences(self, items: Sequence[Item]) -> list[Difference]:
        """What differs, looked at twice."""
        suspects = await self._suspects(items)
        if not suspects:
            return []
        again: list[Item] = []
        for start in range(0, len(suspects), SIDE_BY_SIDE):
            looks = [self._again(one.item) for one in suspects[start : start + SIDE_BY_SIDE]]
            again += [item for item in await asyncio.gather(*looks) if item is not None]
        return await self._suspects(again)

    async def _again(self, item: Item) -> Item | None:
        """The entry as the leader has it, if it is still this one."""
        with reading():
            message = await self._core.leader_message(item.target)
        if message is None or item.message is None or message.sequence != item.message.sequence:
            return None
        return item_of(self._core, message)

    async def _suspects(self, items: Sequence[Item]) -> list[Difference]:
        rows = [item.row or _placeholder(item) for item in items]
        held = {one.place: one for one in await self._table.compare(rows)}
        found = []
        for index, item in enumerate(items):
            kind = self._kind(item, held.get(index))
            if kind is not None:
                found.append(Difference(kind, item))
        return found + await self._without_bytes(items, {id(one.item) for one in found})

    def _kind(self, item: Item, held: Compared | None) -> Kind | None:
        core, stored = self._core, item.stored
        there = None if held is None else Version(held.epoch, held.version)
        if stored is None:
            assert item.message is not None
            version = Version(core.epochs.at(item.message.time_us), item.message.sequence)
            return Kind.UNREADABLE if there is None or there < version else None
        expired = not stored.deleted and entries.gone(stored, core.now_ms())
        if there is None:
            return None if stored.deleted or expired else Kind.SQL_MISSING
        assert held is not None
        if there < stored.version:
            return Kind.TOMBSTONE if stored.deleted else Kind.SQL_OLDER
        if there > stored.version:
            believed = item.message is not None and entries.believed(stored, item.message)
            return Kind.KV_OLDER if believed else None
        return None if held.same or held.quarantined or expired else Kind.CONTENT

    async def _without_bytes(self, items: Sequence[Item], known: set[int]) -> list[Difference]:
        """References whose large value is not there."""
        wanted = {id(one): blob_of(one) for one in items if id(one) not in known}
        ids = [blob for blob in wanted.values() if blob is not None]
        there = await self._table.blobs(ids) if ids else set()
        return [
            Difference(Kind.BLOB_MISSING, one)
            for one in items
            if (blob := wanted.get(id(one))) is not None and blob not in there
        ]


def blob_of(item: Item) -> UUID | None:
    """The large value that an entry refers to."""
    stored = item.stored
    if stored is None or stored.deleted or stored.codec != entries.BLOB:
        return None
    return moved(stored.body, UUID(int=0))[0]


def _placeholder(item: Item) -> Row:
    """An entry that cannot be read is compared by its version alone."""
    return Row(item.target.agent.id, item.target.row_key, None, None, 0, 0, 0, False, False, None)
