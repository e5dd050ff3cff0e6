"""`knowledge.facts`: what is known. Every statement may be repeated: a new fact brings its id along."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from cenote.model.filters import Filter
from cenote.sql.filters import Condition
from cenote.sql.pool import Database
from cenote.sql.transaction import Transaction


class NewFact(NamedTuple):
    """A fact on its way; namespace and text SQL-escaped, the embedding of length 1 as float32."""

    fact_id: UUID
    namespace: str
    text: str
    metadata: str | None
    raw: bytes | None
    embedding: bytes | None


class FactRow(NamedTuple):
    """A fact as it stands in SQL."""

    fact_id: UUID
    namespace: str
    text: str
    metadata: str
    raw: bytes | None
    embedded: bool
    version: int
    created_us: int
    superseded_by: UUID | None


class Due(NamedTuple):
    """A fact that somebody is to embed."""

    fact_id: UUID
    namespace: str
    text: str
    version: int


class FactTable:
    """What the repository asks of SQL about facts."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._dimensions: dict[str, int] = {}  # they never change

    async def dimensions(self, namespace: str, wanted: int | None) -> int | None:
        """How many numbers the embeddings of a namespace have; where there is none yet, `wanted` holds from now on."""
        if namespace not in self._dimensions:
            found = await self._db.fetchval(self._db.queries["fact_dimensions"], namespace)
            if found is None and wanted is not None:
                await self._db.execute(self._db.queries["fact_dimensions_set"], namespace, wanted)
                found = await self._db.fetchval(self._db.queries["fact_dimensions"], namespace)
            if found is None:
                return None
            self._dimensions[namespace] = int(found)
        return self._dimensions[namespace]

    async def add(self, facts: Sequence[NewFact], tx: Transaction | None) -> dict[UUID, int]:
        """All or none; those that are there already stay as they are. When the others were made, in microseconds."""
        into = tx or self._db
        columns = map(list, zip(*facts, strict=True))
        rows = await into.fetch(self._db.queries["facts_add"], *columns)
        return {row["fact_id"]: row["created_us"] for row in rows}

    async def save(self, fact: NewFact) -> None:
        """Create or replace."""
        await self._db.execute(self._db.queries["facts_save"], *fact[:5])

    async def update(self, fact: NewFact, version: int) -> bool:
        """Replace that version; False: it is another by now, or gone."""
        return await self._db.fetchval(self._db.queries["facts_update"], *fact[:5], version) is not None

    async def supersede(self, old: UUID, fact: NewFact) -> None:
        """Put a new fact in the place of a current one; nothing happens where there is no such."""
        await self._db.execute(self._db.queries["facts_supersede"], *fact, old)

    async def by_id(self, fact_ids: Sequence[UUID], tx: Transaction | None = None) -> dict[UUID, FactRow]:
        """Those that there are."""
        rows = await (tx or self._db).fetch(self._db.queries["facts_by_id"], fact_ids)
        return {row["fact_id"]: FactRow(*row) for row in rows}

    async def history(self, fact_id: UUID) -> list[FactRow]:
        """The whole line of a fact, the oldest first."""
        return [FactRow(*row) for row in await self._db.fetch(self._db.queries["facts_history"], fact_id)]

    async def page(self, namespace: str, after: UUID, limit: int, found: Filter) -> list[FactRow]:
        """Current facts by id."""
        query, parameters = self._filtered("facts_page", found, first=4)
        return [FactRow(*row) for row in await self._db.fetch(query, namespace, after, limit, *parameters)]

    async def by_words(self, namespace: str, words: str, limit: int, found: Filter) -> list[tuple[UUID, float]]:
        """The ids and scores of the current facts that fit best."""
        query, parameters = self._filtered("facts_by_words", found, first=4)
        rows = await self._db.fetch(query, namespace, words, limit, *parameters)
        return [(row["fact_id"], row["score"]) for row in rows]

    async def vectors(self, namespace: str, found: Filter) -> list[int]:
        """The ids of the embeddings of current facts that fit."""
        query, parameters = self._filtered("fact_vectors", found, first=2)
        ids: list[int] = await self._db.fetchval(query, namespace, *parameters)
        return ids

    async def numbers(self, namespace: str, vector_ids: Sequence[int]) -> list[tuple[int, UUID, bytes]]:
        """These embeddings, as far as their facts are still current."""
        rows = await self._db.fetch(self._db.queries["fact_numbers"], namespace, vector_ids)
        return [(row["vector_id"], row["fact_id"], row["embedding"]) for row in rows]

    async def claim(self, count: int, seconds: float) -> list[Due]:
        """Facts to embed; nobody else gets them for so long."""
        return [Due(*row) for row in await self._db.fetch(self._db.queries["facts_claim"], count, seconds)]

    async def embedded(self, found: Sequence[tuple[UUID, int, bytes]]) -> None:
        """Fact, version and embedding."""
        await self._db.execute(self._db.queries["facts_embedded"], *map(list, zip(*found, strict=True)))

    async def not_embedded(self, fact_ids: Sequence[UUID]) -> None:
        """Try these again later."""
        await self._db.execute(self._db.queries["facts_not_embedded"], fact_ids)

    async def waiting(self) -> float | None:
        """In how many seconds the next fact may be embedded; None: all are."""
        found: float | None = await self._db.fetchval(self._db.queries["facts_waiting"])
        return found

    async def delete(self, fact_id: UUID) -> None:
        """One of them."""
        await self._db.execute(self._db.queries["facts_delete"], fact_id)

    async def forget(self, namespace: str, found: Filter) -> int:
        """All that fit; how many that were."""
        query, parameters = self._filtered("facts_forget", found, first=2)
        return int((await self._db.execute(query, namespace, *parameters)).split()[-1])

    def _filtered(self, name: str, found: Filter, *, first: int) -> tuple[str, list[object]]:
        condition = Condition(found, "metadata", first=first)
        return self._db.queries[name].replace("AND true", f"AND {condition.text}"), condition.parameters
