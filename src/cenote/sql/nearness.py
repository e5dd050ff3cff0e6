"""`knowledge.near_<n>`: an index on the embeddings of a large namespace, by pgvector. It only says where to look:
`knowledge.facts` alone says what counts, and the exact numbers say what is nearest.

A current fact is in the table of its namespace, or in the tail (`near_id` is not its `vector_id`); one statement moves
it. So a search looks into both, under one snapshot, and misses none.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

import asyncpg

from cenote.errors import CenoteError
from cenote.model.filters import Filter
from cenote.sql.concurrently import alone, patiently
from cenote.sql.filters import Condition
from cenote.sql.locks import advisory_key
from cenote.sql.pool import Database
from cenote.sql.transaction import Isolation, Transaction, transact

DIMENSIONS_MAX: Final = 4_000  # of an HNSW index on halfvec
VERSION_MIN: Final = (0, 8)  # the first with iterative scans: without, a filter costs results
_GONE: Final = {"42P01", "42703", "42704", "42883", "3F000", "42501"}  # table, column, type, operator, schema, right
_FORGET_ROWS: Final = 5_000
_MAKERS: Final = "vector indexes"
_MEMORY: Final = "SET maintenance_work_mem = '256MB'; SET max_parallel_maintenance_workers = 0"
_MEMORY_BACK: Final = "RESET maintenance_work_mem; RESET max_parallel_maintenance_workers"


class Server(NamedTuple):
    """What the server has of pgvector: the version in this database, the one that it could have, its quoted schema, and
    whether this role may bring it."""

    installed: str | None
    available: str | None
    schema: str | None
    may_create: bool

    @property
    def why_not(self) -> str | None:
        """Why it cannot be used as it is; None: it can."""
        if self.installed is None:
            if self.available is None:
                return "the server has no extension vector (pgvector)"
            return f"the extension vector {self.available} has not been created in this database"
        if version(self.installed) < VERSION_MIN:
            return (
                f"the extension vector {self.installed} has no iterative scans; 0.8 has: ALTER EXTENSION vector UPDATE"
            )
        return None


class Space(NamedTuple):
    """A namespace with many embeddings, and how far its table is. `whole`: the table is as it was made; `built`: its
    index is valid; `ready`: searches use it."""

    namespace: str
    dimensions: int
    near: int | None
    ready: bool
    whole: bool
    built: bool


class Near(NamedTuple):
    """The table of a namespace that searches may use."""

    number: int
    dimensions: int
    schema: str


class Counts(NamedTuple):
    """Of a namespace."""

    dimensions: int
    near: int | None
    ready: bool
    facts: int
    indexed: int


class NearGone(CenoteError):
    """Somebody has dropped the table, a part of it or the extension, or taken away the right to it."""


Candidate = tuple[int, UUID, bytes]  # vector_id, fact_id, embedding


class NearTables:
    """Makes and fills them, and looks into them; each step may be repeated, in any number of processes at once."""

    def __init__(self, db: Database) -> None:
        self.db = db

    # --- what there is --------------------------------------------------------------------------------------

    async def server(self) -> Server:
        """What the server has of pgvector."""
        row = await self.db.fetchrow(self.db.queries["near_server"])
        assert row is not None
        return Server(*row)

    async def spaces(self, rows_min: int) -> list[Space]:
        """The namespaces that have a table, and those that are to have one."""
        return [Space(*row) for row in await self.db.fetch(self.db.queries["near_spaces"], rows_min, DIMENSIONS_MAX)]

    async def near(self, namespace: str) -> Near | None:
        """The table that searches in a namespace may use."""
        row = await self.db.fetchrow(self.db.queries["near_space"], namespace)
        return None if row is None else Near(*row)

    async def counts(self, namespace: str) -> Counts | None:
        """How far a namespace is; None: it has no embeddings."""
        row = await self.db.fetchrow(self.db.queries["near_counts"], namespace)
        return None if row is None else Counts(*row)

    # --- searching ------------------------------------------------------------------------------------------

    async def search(
        self, namespace: str, near: Near, asked: Sequence[float], count: int, found: Filter
    ) -> tuple[list[Candidate], list[int]]:
        """So many candidates that pass the filter, fewer where the scan ended; and which of the tail pass it.

        Raises:
            NearGone: there is nothing to look into any more.
        """
        narrow, tail = Condition(found, "f.metadata", first=4), Condition(found, "metadata", first=2)
        nearest = self._placed("near_search", near).replace("AND true", f"AND {narrow.text}")
        rest = self.db.queries["near_tail"].replace("AND true", f"AND {tail.text}")

        async def look(tx: Transaction) -> tuple[list[Candidate], list[int]]:
            await tx.execute(self.db.queries["near_search_settings"])
            rows = await tx.fetch(nearest, namespace, written(asked), count, *narrow.parameters)
            ids: list[int] = await tx.fetchval(rest, namespace, *tail.parameters)
            return [(row["vector_id"], row["fact_id"], row["embedding"]) for row in rows], ids

        try:
            return await transact(self.db, look, isolation=Isolation.REPEATABLE_READ)
        except CenoteError as error:
            if isinstance(error.__cause__, asyncpg.PostgresError) and error.__cause__.sqlstate in _GONE:
                raise NearGone(str(error)) from error
            raise

    # --- making ---------------------------------------------------------------------------------------------

    async def bring(self) -> None:
        """Create the extension."""
        await self.db.execute(self.db.queries["near_extension"])

    async def begin(self, space: Space, schema: str) -> None:
        """Give a namespace its table, empty."""
        queries = self.db.queries
        while await self.db.execute(queries["near_forget"], space.namespace, _FORGET_ROWS) != "UPDATE 0":
            pass
        near = Near(await self.db.fetchval(queries["near_number"]), space.dimensions, schema)

        async def make(tx: Transaction) -> None:
            if await tx.execute(queries["near_begin"], space.namespace, near.number) == "UPDATE 1":
                await tx.execute(self._placed("near_create", near))

        await transact(self.db, make, isolation=Isolation.READ_COMMITTED)

    async def end(self, space: Space) -> None:
        """What is left of a table that somebody has damaged; the namespace may get another."""
        assert space.near is not None
        await self.db.execute(self.db.queries["near_end"], space.namespace, space.near)
        await self.db.execute(self._placed("near_drop", Near(space.near, space.dimensions, "")))

    async def due(self, namespace: str, count: int, after: int) -> list[Candidate]:
        """The next embeddings of the tail."""
        rows = await self.db.fetch(self.db.queries["near_due"], namespace, count, after)
        return [(row["vector_id"], row["fact_id"], row["embedding"]) for row in rows]

    async def fill(self, namespace: str, near: Near, rows: Sequence[tuple[int, UUID, Sequence[float]]]) -> None:
        """Take them into the table; one process at a time."""
        vector_ids, fact_ids, embeddings = zip(*rows, strict=True)

        async def put(tx: Transaction) -> None:
            await tx.execute("SELECT pg_advisory_xact_lock($1)", advisory_key(self.db.names, f"near {near.number}"))
            texts = list(map(written, embeddings))
            await tx.execute(self._placed("near_fill", near), namespace, list(vector_ids), list(fact_ids), texts)

        await transact(self.db, put, isolation=Isolation.READ_COMMITTED)

    async def ready(self, space: Space, *, ready: bool) -> None:
        """Searches use it from here on, or no more."""
        await self.db.execute(self.db.queries["near_ready"], space.namespace, space.near, ready)

    async def sweep(self, space: Space, near: Near) -> None:
        """Remove what no search needs."""
        async with self.db.connection() as con:
            await patiently(con, self._placed("near_sweep", near), space.namespace, lock_timeout="1s")

    async def build_tail(self) -> bool:
        """Whether the index on the tails is there; makes it where nobody else is at it."""
        queries = self.db.queries
        if await self.db.fetchval(queries["near_tail_valid"]):
            return True
        return await self._build(queries["near_tail_valid"], queries["near_tail_drop"], queries["near_tail_create"])

    async def build(self, near: Near) -> bool:
        """Whether the index of a table is there; makes it where nobody else is at it."""
        valid = f"SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('{self._placed_name(near)}_hnsw')"
        made = await self._build(valid, self._placed("near_index_drop", near), self._placed("near_index", near))
        if made:
            await self.db.execute(self._placed("near_analyze", near))
        return made

    async def _build(self, valid: str, drop: str, create: str) -> bool:
        async with self.db.connection() as con, alone(con, self.db.names, _MAKERS) as is_alone:
            if not is_alone:
                return False
            if await con.fetchval(valid) is False:
                await patiently(con, drop, lock_timeout="1s")
            await con.execute(_MEMORY)
            await patiently(con, create, lock_timeout="0")
            await con.execute(_MEMORY_BACK)
            return bool(await con.fetchval(valid))

    def _placed_name(self, near: Near) -> str:
        return f"{self.db.names.schema('knowledge')}.near_{near.number}"

    def _placed(self, name: str, near: Near) -> str:
        return (
            self.db.queries[name]
            .replace("{near}", self._placed_name(near))
            .replace("{index}", f"near_{near.number}_hnsw")
            .replace("{vector}", near.schema)
            .replace("{dimensions}", str(near.dimensions))
        )


def written(numbers: Sequence[float]) -> str:
    """As pgvector reads them."""
    return f"[{','.join(map(repr, numbers))}]"


def version(text: str) -> tuple[int, ...]:
    """Of an extension: 0.8.6 is (0, 8, 6)."""
    return tuple(map(int, re.findall(r"\d+", text)[:3]))
