"""`agents.state`: the newest version of each key that reached SQL, behind a fence.

SQL is authoritative for what KV no longer holds, and for nothing else. Invariants upheld here: (epoch,
version) of a row never goes down (I3: the fence in the statement); a batch is applied only under the epoch
and incarnation it was fetched under (F-inc: the guard); a batch is one commit, with the heartbeat that
describes it (I8).
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final
from uuid import UUID

from cenote import limits
from cenote.naming import Names
from cenote.sql.agents import AgentTable
from cenote.sql.changes import ChangeTable
from cenote.sql.conflicts import ConflictTable
from cenote.sql.dead_letters import DeadLetterTable
from cenote.sql.epochs import EpochTable
from cenote.sql.errors import TIER, DataRefused
from cenote.sql.garbage import GarbageTable
from cenote.sql.pool import Database
from cenote.sql.rows import AgentRow, Flushed, GcFloor, Guard, Heartbeat, Row, SqlVersion, flushed

__all__ = ["FORKED", "Flushed", "Guard", "Heartbeat", "Row", "SqlVersion", "StateTable", "prefix_end"]

FORKED: Final = Row(UUID(int=0), "", None, None, -1, 0, 0, False, False, None)
"""Stands for a key that SQL lacks, because the agent is a fork whose values are still to be copied."""
_LAST_CHAR: Final = "\U0010ffff"
_FIRST_AGENT: Final = UUID(int=0)
_LAST_AGENT: Final = UUID(int=2**128 - 1)
_KEY_END: Final = "\x1a|"  # SQL-escaped keys have four hex digits after each U+001A
_VALUE_END: Final = "\x1f"  # JSON text holds no control characters
_ABOVE_ALL_KEYS: Final = _LAST_CHAR * 501  # 2,004 bytes: a key has at most 2,000


class StateTable(EpochTable, DeadLetterTable, AgentTable, ChangeTable, ConflictTable, GarbageTable):
    """Everything the engine asks of SQL: this class for the rows themselves, its bases for what stands
    beside them."""

    def __init__(self, db: Database, names: Names) -> None:
        assert db.names == names, "a Database serves one namespace"
        super().__init__(db)

    async def flush(
        self, rows: Sequence[Row], guard: Guard, heartbeat: Heartbeat, *, looked: GcFloor | None = None
    ) -> Flushed | None:
        """Apply a batch without two rows of one key, in one statement that is its own transaction.

        Repeatable: a row that SQL holds already, or a newer one, is left alone and not counted. So are rows up to the
        floor of what may have been collected, unless that floor is still the one under which they were `looked` for.

        Returns:
            None when the guard did not hold: nothing was written, and the batch must be dropped.

        Raises:
            DataRefused: some row cannot be stored; nothing was written. Bisect.
            SetupError: the schema is behind.
            UnavailableError: the commit may have happened. Repeat.
        """
        # One order for all flushers, or they deadlock (measured: 5 in 3 s). Code points order like UTF-8 bytes.
        ordered = sorted(rows, key=lambda row: (row.agent_id.int, row.key))
        columns = _columns(ordered, guard.epoch)
        row = await self.db.fetchrow(self.db.queries["flush"], *guard, *columns, *heartbeat, looked and looked.round)
        return flushed(row)

    async def read(self, agent_id: UUID, key: str) -> Row | None:
        """One key's row, tombstones included."""
        row = await self.read_or_forked(agent_id, key)
        return None if row is FORKED else row

    async def read_or_forked(self, agent_id: UUID, key: str) -> Row | None:
        """The same, or FORKED."""
        found = await self.db.fetchrow(self.db.queries["read"], agent_id, key)
        return None if found is None else _row(found)

    async def read_many(self, agent_id: UUID, keys: Sequence[str]) -> list[Row]:
        """The rows of those keys that have one, in no order, tombstones included."""
        return [row for row in await self.read_many_or_forked(agent_id, keys) if row is not FORKED]

    async def read_many_or_forked(self, agent_id: UUID, keys: Sequence[str]) -> list[Row]:
        """The same, and FORKED where the agent is a fork that is still to be copied."""
        return [_row(row) for row in await self.db.fetch(self.db.queries["read_many"], agent_id, keys)]

    async def page(
        self,
        agent_id: UUID,
        after: str | None,
        prefix: str,
        limit: int,
        *,
        live_only: bool,
        now_us: int | None = None,
    ) -> list[Row]:
        """The next rows in key order, one at least if there is one; `[]` alone says that there are no more.

        Args:
            agent_id: whose.
            after: the last key of the page before; None begins.
            prefix: SQL-escaped, as keys are.
            limit: rows at most.
            live_only: without tombstones and expired rows.
            now_us: what counts as expired; default PostgreSQL's clock.
        """
        end = prefix_end(prefix)
        rows = await self.db.fetch(
            self.db.queries["page"], agent_id, after or "", prefix, end, limit, live_only, now_us, limits.PAGE_BYTES_MAX
        )
        return [Row(*row) for row in rows]

    async def keys_page(self, agent_id: UUID, after: str, prefix: str, limit: int) -> list[str]:
        """The next keys of live rows, SQL-escaped."""
        query = self.db.queries["keys_page"]
        return [row[0] for row in await self.db.fetch(query, agent_id, after, prefix, prefix_end(prefix), limit)]

    async def named(self, prefix: str, after: str, limit: int, phase: str | None = None) -> list[AgentRow]:
        """The next registered agents by name, SQL-escaped, that begin with `prefix`; `phase`: only those of which this
        one was noted last, "active" where none was."""
        query = self.db.queries["agents_named"]
        return [AgentRow(*row) for row in await self.db.fetch(query, prefix, after, prefix_end(prefix), limit, phase)]

    async def versions(self, pairs: Iterable[tuple[UUID, str]]) -> dict[tuple[UUID, str], SqlVersion]:
        """What SQL holds of these (agent, key) pairs, without those it does not hold."""
        wanted = list(pairs)
        rows = await self.db.fetch(
            self.db.queries["versions"], [agent_id for agent_id, _ in wanted], [key for _, key in wanted]
        )
        return {(row[0], row[1]): SqlVersion(row[2], row[3], row[4]) for row in rows}

    async def newer(
        self, agent_ids: Sequence[UUID], keys: Sequence[str], epochs: Sequence[int], versions: Sequence[int]
    ) -> list[tuple[int, SqlVersion]]:
        """Of these entries those that SQL holds newer, in no order: their index, and what SQL holds."""
        columns = (agent_ids, _joined(keys, _KEY_END), _array(epochs), _array(versions))
        return [(row[0] - 1, SqlVersion(*row[1:])) for row in await self.db.fetch(self.db.queries["newer"], *columns)]

    async def newer_than(
        self, epoch: int, version: int, agent_id: UUID | None, page: int
    ) -> AsyncIterator[tuple[str | None, Row]]:
        """Rows above a version in key order, tombstones included, with the SQL-escaped name of their agent (None while
        it is not registered); of one agent, or of all."""
        place: tuple[UUID, str] = (agent_id or _FIRST_AGENT, "")
        last = agent_id or _LAST_AGENT
        while True:
            query = self.db.queries["newer_than"]
            rows = await self.db.fetch(query, epoch, version, last, *place, page, limits.PAGE_BYTES_MAX)
            for row in rows:
                yield row[0], Row(*row[1:])
            if not rows:
                return
            place = (rows[-1]["agent_id"], rows[-1]["key"])

    async def count_rows(self) -> int:
        """Rows of the table, tombstones included: exact while it is small, else the planner's estimate."""
        return int(await self.db.fetchval(self.db.queries["count_rows"]))


def _row(found: Sequence[Any]) -> Row:
    return FORKED if found[4] == FORKED.version else Row(*found)


def prefix_end(prefix: str) -> str:
    """The least string above every legal key that begins with `prefix`, in the order of COLLATE "C"."""
    kept = prefix.rstrip(_LAST_CHAR)
    if not kept:
        return _ABOVE_ALL_KEYS
    following = ord(kept[-1]) + 1
    return kept[:-1] + ("\ue000" if following == 0xD800 else chr(following))


def _columns(rows: Sequence[Row], epoch: int) -> tuple[object, ...]:
    """The statement's ten columns. An optional one is None, and travels as NULL, where all rows have the default."""
    ids, keys, values, raws, versions, epochs, times, deleted, quarantined, expires = zip(*rows, strict=True)
    return (
        ids,
        _joined(keys, _KEY_END),
        _joined([value or "" for value in values] if None in values else values, _VALUE_END),
        _array(versions),
        _array(times),
        None if epochs.count(epoch) == len(rows) else _array(epochs),
        None if raws.count(None) == len(rows) else raws,
        _array(deleted) if any(deleted) else None,
        _array(quarantined) if any(quarantined) else None,
        None if expires.count(None) == len(rows) else _array(expires).replace("None", "NULL"),
    )


def _joined(texts: Sequence[str], end: str) -> str:
    joined = end.join(texts)
    if joined.count(end) != len(texts) - 1:
        raise DataRefused("a key is not escaped, or a value is not JSON: it holds a control character", tier=TIER)
    return joined


def _array(values: Iterable[int | None]) -> str:
    """An array literal: PostgreSQL reads Python's numbers, and its True and False."""
    return "{" + str(list(values))[1:-1] + "}"
