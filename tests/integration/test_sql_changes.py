"""The log of commits behind the change feed: in order, without gaps, bounded (flow rules 5, 25)."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest
from pg_server import GUARD, PgServer, beat, db, pg, row, table

from cenote.naming import Names
from cenote.sql import loader
from cenote.sql.pool import Database
from cenote.sql.rows import Row
from cenote.sql.state import StateTable, _columns
from witness import demand, toothed

__all__ = ["db", "pg", "table"]  # fixtures


def the_lock_under_the_number(patch: pytest.MonkeyPatch) -> None:
    """Commits are numbered by a sequence, as a bigserial would."""
    head = re.compile(r"INSERT INTO (\S+)\.flush_head AS h .*?RETURNING number, committed_at", re.DOTALL)
    plain = loader.placed

    def placed(text: str, names: Names) -> str:
        loose = (
            r"SELECT nextval('\1.loose') AS number, clock_timestamp() AS committed_at WHERE EXISTS (SELECT FROM beat)"
        )
        return head.sub(loose, plain(text, names))

    patch.setattr(loader, "placed", placed)


@asynccontextmanager
async def slow_commit(pg: PgServer, names: Database, rows: list[Row]) -> AsyncIterator[None]:
    """Another flusher, whose commit is still to come inside the block."""
    connection = await asyncpg.connect(pg.url())
    try:
        async with connection.transaction():
            query = loader.Queries(names.names)["flush"]
            await connection.fetchrow(query, *GUARD, *_columns(rows, 1), *beat(flusher_id="slow"), None)
            yield
    finally:
        await connection.close()


@toothed(the_lock_under_the_number)
async def test_a_commit_that_is_read_has_none_still_to_come_below_it(
    pg: PgServer, db: Database, table: StateTable
) -> None:
    """Flusher A has its number and has not committed, B begins later and would be done earlier: a reader that saw B and
    went on from there would never see A."""
    await db.execute(f"CREATE SEQUENCE {db.names.schema('agents')}.loose")
    tight = StateTable(Database(db.config, db.retry, db.names), db.names)  # reads the queries as they are now
    try:
        seen = await _read_beside(pg, tight)
    finally:
        await tight.db.close()
    demand(sorted(seen) == ["quick", "slow"], f"rule 25: a reader missed a commit: {seen}")
    assert await table.count_rows() == 2


async def _read_beside(pg: PgServer, tight: StateTable) -> list[str]:
    """The keys that a reader meets who looks while one commit is still to come, and again after it."""
    seen: list[str] = []
    after = None

    async def read() -> None:
        nonlocal after
        for commit in await tight.commits(after, 10) or []:
            seen.extend(commit.keys)
            after = commit.id

    async with slow_commit(pg, tight.db, [row(uuid4(), "slow")]):
        flush = asyncio.create_task(tight.flush([row(uuid4(), "quick")], GUARD, beat(flusher_id="quick")))
        await asyncio.wait([flush], timeout=0.3)
        await read()
    assert await flush is not None
    await read()
    return seen


async def test_numbers_have_no_gaps_and_no_row_changes_without_one(db: Database, table: StateTable) -> None:
    rows = [row(uuid4(), f"k{n}", version=n + 1) for n in range(20)]

    async def flusher(name: str) -> None:
        for start in range(0, 20, 2):
            await table.flush(rows[start : start + 2], GUARD, beat(flusher_id=name))

    await asyncio.gather(*(flusher(name) for name in "abc"))
    await table.flush(rows, GUARD, beat())
    await table.flush_one_quarantined(row(raw=b"x"), GUARD, beat(), reason="test", envelope="")
    commits = await table.commits(None, 100)
    assert commits is not None
    assert [commit.number for commit in commits] == list(range(1, len(commits) + 1))
    assert sorted(key for commit in commits for key in commit.keys) == sorted([*(f"k{n}" for n in range(20)), "k"])
    assert commits[-1].id == await table.head()


async def test_old_commits_leave_the_log_and_a_position_on_them_says_so(db: Database, table: StateTable) -> None:
    for number in range(1, 7):
        await table.flush([row(key=f"k{number}")], GUARD, beat())
    commits = await table.commits(None, 100)
    assert commits is not None
    log = f"{db.names.schema('agents')}.flush_log"
    await db.execute(f"UPDATE {log} SET committed_at = committed_at - interval '8 days' WHERE number <= 3")
    assert await table.prune(7 * 86_400, 2) == 2
    assert await table.prune(7 * 86_400, 2) == 1
    assert await table.prune(7 * 86_400, 2) == 0
    assert await table.commits(commits[2].id, 100) is None
    assert await table.commits(commits[3].id, 100) == commits[4:]
    assert await table.commits(None, 100) == commits[3:]
    assert await table.prune(0, 100) == 2, "the newest stays: who has read everything stands on it"
    assert await table.commits(commits[-1].id, 100) == []
