"""Forks: an agent that begins as what a checkpoint of another one holds (decision 0010).

A fork is one row that names the checkpoint. Its values are copied into `agents.state` when somebody first asks SQL for
a key that is not there, or for all of them; until then SQL does not answer for the agent. Puts, deletes and flushes
never ask. Copies are of epoch 0, at the place of the checkpoint: everything that is written to the agent is newer, a
change of epoch leaves them alone, and a copy never takes a place that somebody has written to, a tombstone's least of
all.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from uuid import UUID, uuid4

from cenote import points
from cenote.engine import entries
from cenote.engine.blobs import moved
from cenote.engine.fold import Fold
from cenote.errors import CodecError, ConsistencyError
from cenote.model import key as keys
from cenote.model.entry import Stored, Version
from cenote.model.kept import Kept
from cenote.sql.checkpoints import CheckpointTable
from cenote.sql.forks import ForkRow, ForkTable
from cenote.sql.restores import RestoreTable
from cenote.sql.rows import Row
from cenote.sql.state import FORKED, StateTable


class Forks:
    """Reads rows of agents, and copies those of a fork before it says that there are none."""

    def __init__(self, table: StateTable) -> None:
        self._table = table
        self.marks = ForkTable(table.db)
        self._checkpoints = CheckpointTable(table.db)
        self._blobs = RestoreTable(table.db)
        self._copying: dict[UUID, asyncio.Task[None]] = {}

    async def begin(self, new: keys.AgentRef, checkpoint_id: UUID, source: keys.AgentRef) -> bool:
        """Make `new` a fork, unless SQL has seen it before. A key that others write to it from now on stays theirs."""
        if not await self.marks.add(new.id, source.id, checkpoint_id):
            return False
        if points.armed:
            await points.hit("fork.mark")
        await self._table.register([(new.id, keys.sql_key(new.text))])
        return True

    async def read(self, agent_id: UUID, key: str) -> Row | None:
        """One key's row, tombstones included."""
        row = await self._table.read_or_forked(agent_id, key)
        if row is not FORKED:
            return row
        await self.copied(agent_id)
        return await self._table.read(agent_id, key)

    async def read_many(self, agent_id: UUID, wanted: Sequence[str]) -> list[Row]:
        """The rows of those keys that have one, in no order, tombstones included."""
        rows = await self._table.read_many_or_forked(agent_id, wanted)
        if FORKED not in rows:
            return rows
        if len(rows) <= len(wanted):  # the mark is one of them
            await self.copied(agent_id)
        return await self._table.read_many(agent_id, wanted)

    async def copied(self, agent_id: UUID | None, *, of: UUID | None = None) -> None:
        """Copy what is still to be copied, of one agent or of all, or of one checkpoint; once at a time in a process.

        Raises:
            UnavailableError: PostgreSQL does not answer; whoever comes next goes on.
            ConsistencyError, UnknownFormat: the checkpoint is damaged, or of a newer format.
        """
        for fork in await self.marks.pending(agent_id):
            if of is not None and fork.checkpoint_id != of:
                continue
            task = self._copying.get(fork.agent_id)
            if task is None:
                task = self._copying[fork.agent_id] = asyncio.create_task(self._copy(fork))
                task.add_done_callback(partial(self._ended, fork.agent_id))
            await asyncio.shield(task)

    def _ended(self, agent_id: UUID, task: asyncio.Task[None]) -> None:
        del self._copying[agent_id]
        if not task.cancelled():
            task.exception()  # whoever waited was told; a caller whose time was over is not there any more

    async def _copy(self, fork: ForkRow) -> None:
        source = keys.AgentRef(str(fork.source_id), "", fork.source_id)
        async for page in Fold(self._checkpoints, source, fork.seq).pages():
            if points.armed:
                await points.hit("fork.copy")
            if not await self.marks.copy(fork, [await self._row(fork, kept) for kept in page]):
                return
        if points.armed:
            await points.hit("fork.copied")
        await self.marks.done(fork)

    async def _row(self, fork: ForkRow, kept: Kept) -> Row:
        """A row of the fork. Large values get bytes of their own, for a blob belongs to one write (rule 20)."""
        row_key, body = keys.sql_key(kept.key), kept.body
        if kept.codec == entries.BLOB:
            blob_id = uuid4()
            of, body = moved(body, blob_id)
            if not await self._blobs.copy_blob(blob_id, of, fork.agent_id, row_key):
                raise ConsistencyError(f"I1: the bytes of {kept.key!r} in a checkpoint are missing", key=kept.key)
        stored = Stored(
            Version(0, fork.revision), 0, kept.codec, body, False, fork.cut_us, kept.expires_ms, True, 0, ""
        )  # fmt: skip
        agent = keys.AgentRef("", "", fork.agent_id)
        try:
            return entries.to_row(agent, row_key, stored)
        except (CodecError, ValueError, RecursionError):  # it was unreadable before: its bytes are kept (rule 14)
            return Row(
                fork.agent_id, row_key, None, body, fork.revision, 0, fork.cut_us, False, True,
                None if kept.expires_ms is None else kept.expires_ms * 1000,
            )  # fmt: skip
