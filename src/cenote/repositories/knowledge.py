"""Knowledge: what is known, found by what it means, by its words and by what is said about it.

PostgreSQL is authoritative. Embeddings are compared exactly, in the memory of whoever searches
(`knowledge_vectors.py`), so the answers are the same on every PostgreSQL; in a large namespace only those that an index
proposes, where there is one (`knowledge_index.py`).
"""

import asyncio
import builtins
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, Literal
from uuid import UUID

from cenote import limits
from cenote.engine.machines import Machines
from cenote.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    OutcomeUnknownError,
    RejectedError,
    SetupError,
    UnavailableError,
)
from cenote.model import filters
from cenote.model import key as keys
from cenote.model.page import Cursors, Page, page_limit
from cenote.repositories.knowledge_embedder import embeddings, named
from cenote.repositories.knowledge_entity import (
    Fact,
    Found,
    NewFact,
    checked_rows,
    fact,
    fresh,
    identity,
    outgoing,
    settled,
    unit,
    whole,
)
from cenote.repositories.knowledge_entity import namespace as checked_namespace
from cenote.repositories.knowledge_index import VectorIndex, VectorIndexState
from cenote.repositories.knowledge_vectors import Vectors
from cenote.repositories.knowledge_worker import Worker
from cenote.repositories.repository import Repository
from cenote.repositories.tasks_asking import Asking
from cenote.sql.knowledge import FactTable
from cenote.sql.knowledge import NewFact as NewRow
from cenote.sql.transaction import Transaction

Mode = Literal["hybrid", "vector", "text"]

_NO_FACT: Final = "there is no such fact"
_FIRST: Final = UUID(int=0)
_MODES: Final = ("hybrid", "vector", "text")
_RRF_K: Final = 60  # Cormack, Clarke, Büttcher: Reciprocal Rank Fusion outperforms Condorcet…, SIGIR 2009
_RRF_DEPTH: Final = 50  # each list is read this deep, or to the limit where that is deeper


class Knowledge(Repository[Fact, UUID]):
    """What is known."""

    def __init__(self, machines: Machines) -> None:
        self._core = machines.core
        self._table = FactTable(machines.core.db)
        self._asking = Asking(machines.core)
        self._vectors = Vectors(self._table)
        self._index = VectorIndex(machines.core, self._vectors)
        self._worker = Worker(machines.core, self._table)

    # --- adding ---------------------------------------------------------------------------------------------

    async def add(
        self,
        text: str,
        *,
        metadata: Mapping[str, object] | None = None,
        namespace: str = "default",
        embedding: Sequence[float] | None = None,
        fact_id: UUID | None = None,
        tx: Transaction | None = None,
    ) -> Fact:
        """Add a fact; on return PostgreSQL has it, and its words find it. Its embedding comes soon after, where a
        process has an embedder.

        Args:
            text: up to 256 KiB.
            metadata: a mapping with string keys, up to 64 KiB encoded; filters look here.
            namespace: searches look into one; 1 to 200 characters.
            embedding: where you have one; all of a namespace have the same number of dimensions.
            fact_id: of a fact that may have been added already: then this is the stored one.
            tx: add it with this transaction.

        Raises:
            RejectedError: a field, with its limit; nothing was added.
            AlreadyExistsError: another fact has this id.
            UnavailableError: PostgreSQL cannot be reached.
        """
        given: NewFact = {
            "text": text, "metadata": metadata, "namespace": namespace, "embedding": embedding, "fact_id": fact_id
        }  # fmt: skip
        return (await self.add_many([given], tx=tx))[0]

    async def add_many(self, facts: Iterable[NewFact], *, tx: Transaction | None = None) -> builtins.list[Fact]:
        """Add several facts, all or none: at most 10,000 facts of 32 MiB together.

        Args:
            facts: mappings with the arguments of `add`.
            tx: as for `add`.

        Raises:
            As `add`, with the place of the fact in the list.
        """
        rows = checked_rows(list(facts))
        if not rows:
            return []
        await self._fit(rows)
        made = await self._asking.again(lambda: self._table.add(rows, tx), tx)
        known = [row.fact_id for row in rows if row.fact_id not in made]
        stored = await self._asking.again(lambda: self._table.by_id(known, tx), tx) if known else {}
        if tx is None:
            self._worker.stir()
        else:
            tx.after_commit.append(self._worker.stir)
        return [
            fact(fresh(row, made[row.fact_id])) if row.fact_id in made else settled(row, stored.get(row.fact_id))
            for row in rows
        ]

    async def supersede(
        self,
        fact_id: UUID,
        text: str,
        *,
        metadata: Mapping[str, object] | None = None,
        embedding: Sequence[float] | None = None,
        new_id: UUID | None = None,
    ) -> Fact:
        """Put a new fact in the place of one; searches find the new one only, `history` both.

        Args:
            fact_id: of the fact that is no longer so.
            text: what is so instead.
            metadata: None: that of the old one.
            embedding: as for `add`.
            new_id: of the new one, which may have been tried before.

        Raises:
            NotFoundError: there is no such fact.
            ConflictError: it has been superseded already, by another.
        """
        old = await self.find(fact_id)
        given: NewFact = {
            "text": text, "metadata": old.metadata if metadata is None else metadata, "namespace": old.namespace,
            "embedding": embedding, "fact_id": new_id,
        }  # fmt: skip
        row = outgoing(given)
        if old.superseded_by not in (None, row.fact_id):
            raise ConflictError("this fact has been superseded already", hint="find the newest by history(fact_id)")
        await self._fit([row])
        taken = await self._asking.again(lambda: self._table.by_id([row.fact_id]))
        if old.superseded_by is None and taken:
            raise AlreadyExistsError(f"new_id {row.fact_id}: another fact has it", tier="RELATIONAL_DB")
        await self._asking.again(lambda: self._table.supersede(fact_id, row))
        stored = await self._asking.again(lambda: self._table.by_id([row.fact_id]))
        if row.fact_id not in stored:
            raise ConflictError("this fact was superseded or removed meanwhile", hint="find it, and decide again")
        self._worker.stir()
        return settled(row, stored[row.fact_id])

    # --- a repository ---------------------------------------------------------------------------------------

    async def save(self, entity: Fact) -> Fact:
        """Create or replace a fact, by its id; another text gets another embedding."""
        row = whole(entity)
        await self._asking.again(lambda: self._table.save(row))
        self._worker.stir()
        return await self.find(row.fact_id)

    async def find(self, fact_id: UUID) -> Fact:
        """A fact, superseded or not. NotFoundError when there is none of this id."""
        wanted = identity(fact_id)
        found = (await self._asking.again(lambda: self._table.by_id([wanted]))).get(wanted)
        if found is None:
            raise NotFoundError(_NO_FACT, tier="RELATIONAL_DB")
        return fact(found)

    async def get(self, fact_id: UUID) -> Fact:
        """The same as `find`."""
        return await self.find(fact_id)

    async def update(self, entity: Fact) -> Fact:
        """Replace what was read. NotFoundError; ConflictError when it has been saved since."""
        row = whole(entity)
        try:
            done = await self._table.update(row, entity.version)
        except UnavailableError as error:
            raise OutcomeUnknownError(
                "the answer was lost: the update may or may not have happened", tier="RELATIONAL_DB",
                hint="find the fact, and compare",
            ) from error  # fmt: skip
        stored = await self.find(row.fact_id)
        if not done:
            raise ConflictError(f"fact {row.fact_id} was saved since it was read", hint="find it and decide again")
        self._worker.stir()
        return stored

    async def delete(self, fact_id: UUID) -> None:
        """Remove a fact; removing an absent one is fine."""
        wanted = identity(fact_id)
        await self._asking.again(lambda: self._table.delete(wanted))

    async def list(
        self,
        *,
        limit: int = 100,
        cursor: str | None = None,
        where: Mapping[str, Any] | None = None,
        namespace: str = "default",
    ) -> Page[Fact]:
        """A page of the current facts of a namespace, by id.

        Raises:
            NotFoundError: there is no such page.
            RejectedError: an argument cannot be meant.
        """
        page_limit(limit)
        within, found = checked_namespace(namespace), _filter(where)
        cursors, after = Cursors(self._core.epochs.store_id, "knowledge"), _FIRST
        if cursor is not None:
            last, of = cursors.read(cursor)
            after = UUID(last)
            if of != [within, repr(found)]:
                cursors.read("")  # raises what a forged one does
        rows = await self._asking.again(lambda: self._table.page(within, after, limit + 1, found))
        more = cursors.write(str(rows[limit - 1].fact_id), [within, repr(found)]) if len(rows) > limit else None
        return Page([fact(row) for row in rows[:limit]], more)

    async def history(self, fact_id: UUID) -> builtins.list[Fact]:
        """All facts that superseded each other, this one among them, the oldest first. Raises NotFoundError."""
        wanted = identity(fact_id)
        rows = await self._asking.again(lambda: self._table.history(wanted))
        if not rows:
            raise NotFoundError(_NO_FACT, tier="RELATIONAL_DB")
        return [fact(row) for row in rows]

    async def forget(self, *, where: Mapping[str, Any] | None = None, namespace: str = "default") -> int:
        """Remove the facts of a namespace that fit a filter, superseded ones as well; how many. None: all of them."""
        within, found = checked_namespace(namespace), _filter(where)
        return await self._asking.again(lambda: self._table.forget(within, found))

    # --- searching ------------------------------------------------------------------------------------------

    async def search(
        self,
        query: str | None = None,
        *,
        embedding: Sequence[float] | None = None,
        limit: int = 10,
        where: Mapping[str, Any] | None = None,
        namespace: str = "default",
        mode: Mode = "hybrid",
    ) -> builtins.list[Found]:
        """The current facts that fit best, the best first; always `limit` of them where so many fit.

        Args:
            query: words. By text they must all be there, `"in this order"`, `or` and `-without` are understood; by
                vector their meaning counts.
            embedding: instead of the embedder's for `query`.
            where: a filter on metadata (`cenote.model.filters`).
            mode: "text", "vector", or both, fused by their ranks. Without an embedder and an embedding "hybrid" is
                "text".

        Raises:
            RejectedError: an argument cannot be meant; a dimension that is not the namespace's, with both numbers.
            SetupError: mode="vector" with a text, and no embedder; it says what to install and to set.
        """
        page_limit(limit)
        within, found = checked_namespace(namespace), _filter(where)
        words = None if query is None else _words(query)
        if mode not in _MODES:
            raise RejectedError(f"mode: {mode!r}; one of {', '.join(_MODES)} is needed")
        if words is None and (embedding is None or mode == "text"):
            raise RejectedError("query: it is missing")
        depth = limit if mode != "hybrid" else max(limit, _RRF_DEPTH)
        ranked: builtins.list[builtins.list[tuple[UUID, float]]] = []
        if mode != "text" and (embedding is not None or mode == "vector" or self._core.config.knowledge.embedder):
            asked = await self._asked(words, embedding)
            ranked.append(await self._nearest(within, asked, depth, found))
        if mode != "vector" and words is not None:
            ranked.append(await self._asking.again(lambda: self._table.by_words(within, words, depth, found)))
        best = (ranked[0] if len(ranked) == 1 else _fused(ranked))[:limit]
        rows = await self._asking.again(lambda: self._table.by_id([fact_id for fact_id, _ in best]))
        return [Found(fact=fact(rows[fact_id]), score=score) for fact_id, score in best if fact_id in rows]

    async def embedded(self, timeout: timedelta | float | None = None) -> None:
        """Wait until every current fact of the store has an embedding.

        Raises:
            SetupError: this process has no embedder, and there are facts without an embedding.
            UnavailableError: that took longer than `timeout`.
        """
        if self._core.config.knowledge.embedder is None:
            if await self._asking.again(self._table.waiting) is not None:
                named(None)
            return
        named(self._core.config.knowledge.embedder)
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        try:
            async with asyncio.timeout(seconds):
                await self._worker.done()
        except TimeoutError:
            raise UnavailableError(f"after {seconds:g} s some facts have no embedding yet") from None

    async def vector_index(self, namespace: str = "default") -> VectorIndexState:
        """How searches by embedding in a namespace find what is nearest: by pgvector's index, or exactly; and why."""
        return await self._index.state(checked_namespace(namespace))

    async def _asked(self, words: str | None, embedding: Sequence[float] | None) -> bytes:
        if embedding is not None:
            return unit(embedding)
        embedder = named(self._core.config.knowledge.embedder)
        try:
            return (await embeddings(embedder, [words or ""]))[0]
        except SetupError:
            raise
        except Exception as error:
            raise UnavailableError(f"embedder {embedder.name!r} failed: {error!r}") from error

    async def _nearest(
        self, within: str, asked: bytes, limit: int, found: filters.Filter
    ) -> builtins.list[tuple[UUID, float]]:
        dimensions = await self._dimensions(within, None)
        if dimensions is None:
            return []
        _same_dimensions(len(asked) // 4, dimensions)
        best = await self._index.nearest(within, asked, limit, found)
        if best is not None:
            return best
        vector_ids = await self._asking.again(lambda: self._table.vectors(within, found))
        return await self._asking.again(lambda: self._vectors.nearest(within, vector_ids, asked, limit))

    async def _fit(self, rows: Sequence[NewRow]) -> None:
        """RejectedError for an embedding that is not as long as the others of its namespace."""
        wanted: dict[str, int] = {}
        for number, row in enumerate(rows):
            if row.embedding is not None:
                given = len(row.embedding) // 4
                if row.namespace not in wanted:
                    wanted[row.namespace] = await self._dimensions(row.namespace, None) or given
                place = f"facts[{number}]." if len(rows) > 1 else ""
                _same_dimensions(given, wanted[row.namespace], place)
        for within, length in wanted.items():  # not before all is known to be right: what is said here stays so
            _same_dimensions(length, await self._dimensions(within, length))

    async def _dimensions(self, within: str, wanted: int | None) -> int | None:
        return await self._asking.again(lambda: self._table.dimensions(within, wanted))


def _same_dimensions(given: int, wanted: int | None, place: str = "") -> None:
    if given != wanted:
        raise RejectedError(f"{place}embedding: {given} dimensions; those of its namespace have {wanted}")


def _filter(where: Mapping[str, Any] | None) -> filters.Filter:
    return filters.parse({} if where is None else where)


def _words(query: object) -> str:
    if not isinstance(query, str):
        raise RejectedError(f"query: a str is needed, not {type(query).__name__}")
    if not 0 < len(query) <= limits.FACT_WORDS_CHARS_MAX:
        raise RejectedError(f"query: {len(query)} characters; 1 to {limits.FACT_WORDS_CHARS_MAX} are allowed")
    return keys.sql_key(str.__str__(query))


def _fused(ranked: Iterable[Sequence[tuple[UUID, float]]]) -> builtins.list[tuple[UUID, float]]:
    """Several orders as one, by ranks alone: their scores have no common measure."""
    scores: dict[UUID, float] = {}
    for one in ranked:
        for rank, (fact_id, _) in enumerate(one, 1):
            scores[fact_id] = scores.get(fact_id, 0.0) + 1 / (_RRF_K + rank)
    return sorted(scores.items(), key=lambda found: (-found[1], found[0]))
