"""`agents.search` and the index `state_value`: where content may be found. The rows of `agents.state` alone are
authoritative; both may be missing, and no answer depends on them."""

import json
from typing import Final, NamedTuple
from uuid import UUID

import asyncpg

from cenote import limits
from cenote.errors import UnavailableError
from cenote.model import key as keys
from cenote.model.filters import Filter, contained
from cenote.sql.agents import indexed
from cenote.sql.concurrently import alone, patiently
from cenote.sql.errors import TIER
from cenote.sql.filters import Condition
from cenote.sql.pool import Database
from cenote.sql.rows import Row
from cenote.sql.state import prefix_end
from cenote.sql.transaction import Isolation, Transaction, transact

_FIRST: Final = UUID(int=0)
_LAST: Final = UUID(int=2**128 - 1)
_HIDDEN: Final = sorted(keys.RESERVED_IDS)


class Where(NamedTuple):
    """What is asked for: of which agent (None: any), after which place, under which prefix (SQL-escaped), and of what
    value."""

    agent_id: UUID | None
    after: tuple[UUID, str] | None
    prefix: str
    value: Filter


class SearchState(NamedTuple):
    """Which index there is. `inline`: None where there is none, False: half-built. `projected`, `filled`: whether there
    is a projection, and all in it; `commits`, `lag_ms`: how far it is behind, None where it is not."""

    inline: bool | None
    projected: bool | None
    filled: bool | None
    commits: int | None
    lag_ms: int | None


class SearchTable:
    """Finds, and keeps the projection; each step of that is repeatable, in any number of processes at once."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def find(
        self, where: Where, limit: int, now_us: int, *, projected: bool
    ) -> list[tuple[str | None, Row]] | None:
        """The next rows in key order, with the SQL-escaped names of their agents; `[]` alone says that there are no
        more. None: there is no projection to look in, or nothing to look for in it.

        Raises:
            UnavailableError: it took longer than `limits.SEARCH_MS_MAX`, or PostgreSQL cannot be reached.
        """
        statement = self.statement(where, limit, now_us, projected=projected)
        if statement is None:
            return None
        query, arguments = statement
        try:
            rows = await self.db.fetch(query, *arguments, timeout_ms=limits.SEARCH_MS_MAX)
        except UnavailableError as error:
            if isinstance(error.__cause__, TimeoutError | asyncpg.QueryCanceledError):
                raise UnavailableError(
                    f"the search was given up after {limits.SEARCH_MS_MAX / 1000:g} s", tier=TIER,
                    hint="narrow it by agent or key_prefix, or give it an index: sql.search_index",
                ) from error  # fmt: skip
            raise
        if rows and rows[0]["key"] is None:
            return None
        return [(row[0], Row(*row[1:])) for row in rows]

    def statement(
        self, where: Where, limit: int, now_us: int, *, projected: bool
    ) -> tuple[str, tuple[object, ...]] | None:
        """The query of `find` and its arguments; None: no index can narrow it."""
        first, after = where.after or (where.agent_id or _FIRST, "")
        arguments = (
            first, where.agent_id or _LAST, after, where.prefix, prefix_end(where.prefix), limit,
            limits.PAGE_BYTES_MAX, now_us, _HIDDEN,
        )  # fmt: skip
        if not projected:
            text, parameters = indexed(where.value, "s.value", first=len(arguments) + 1)
            return self.db.queries["search_scan"].replace("AND true", f"AND {text}"), (*arguments, *parameters)
        narrow = contained(where.value)
        if narrow is None:
            return None
        condition = Condition(where.value, "s.value", first=len(arguments) + 2)
        query = self.db.queries["search_projected"].replace("AND true", f"AND {condition.text}")
        return query, (*arguments, json.dumps(narrow), *condition.parameters)

    async def state(self) -> SearchState:
        """Which index there is."""
        row = await self.db.fetchrow(self.db.queries["search_state_of"])
        assert row is not None
        return SearchState(*row)

    # --- the projection -------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Let there be a projection."""
        await self.db.execute(self.db.queries["search_begin"], _FIRST)

    async def step(self) -> bool:
        """Bring the projection a bit further; whether there is more to do at once."""

        async def further(tx: Transaction) -> bool:
            queries = self.db.queries
            head = await tx.fetchrow(queries["search_lock"])
            if head is None:
                return False  # somebody has ended it
            if head["gap"]:
                await tx.execute(queries["search_refill"], _FIRST)
                return True
            if head["agent_id"] is not None:
                place = head["agent_id"], head["key"]
                await tx.fetchval(queries["search_fill"], *place, limits.SEARCH_FILL_ROWS, _HIDDEN)
                return True
            commits = await tx.fetchval(queries["search_feed"], limits.SEARCH_FEED_COMMITS, _HIDDEN)
            return bool(commits == limits.SEARCH_FEED_COMMITS)

        return await transact(self.db, further, isolation=Isolation.READ_COMMITTED)

    async def expire(self) -> None:
        """Forget what has expired: some of it."""
        await self.db.execute(self.db.queries["search_expire"], limits.SEARCH_FILL_ROWS)

    async def end(self) -> None:
        """There is no projection from here on."""
        await self.db.execute(self.db.queries["search_end"])

    async def empty(self) -> bool:
        """Remove some of what is left of it; whether there is more."""
        tag = await self.db.execute(self.db.queries["search_empty"], limits.SEARCH_FILL_ROWS)
        return tag != "DELETE 0"

    # --- the index on the state -----------------------------------------------------------------------------

    async def build(self) -> None:
        """Make the index beside the flushes, unless it is there or somebody is at it. It takes what it takes."""
        if await self.db.fetchval(self.db.queries["search_building"]):
            return
        async with self.db.connection() as con, alone(con, self.db.names, "search_index") as is_alone:
            if is_alone and (await self.state()).inline is False:
                await patiently(con, self.db.queries["search_inline_drop"], lock_timeout="1s")
            if is_alone:
                await patiently(con, self.db.queries["search_inline_create"], lock_timeout="0")

    async def remove(self) -> None:
        """Drop the index beside the flushes, unless somebody is at it. TransactionError while another session holds its
        table."""
        async with self.db.connection() as con, alone(con, self.db.names, "search_index") as is_alone:
            if is_alone:
                await patiently(con, self.db.queries["search_inline_drop"], lock_timeout="1s")
