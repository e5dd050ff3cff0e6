"""Knowledge without `await`."""

import builtins
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from cenote.blocking.thread import LoopThread
from cenote.blocking.transactions import Transaction, bare
from cenote.model.page import Page
from cenote.repositories import knowledge
from cenote.repositories.knowledge import Mode
from cenote.repositories.knowledge_entity import Fact, Found, NewFact
from cenote.repositories.knowledge_index import VectorIndexState


class Knowledge:
    """See `cenote.Store.knowledge`; threads may share it."""

    def __init__(self, thread: LoopThread, inner: knowledge.Knowledge) -> None:
        self._thread = thread
        self._inner = inner

    def add(
        self,
        text: str,
        *,
        metadata: Mapping[str, object] | None = None,
        namespace: str = "default",
        embedding: Sequence[float] | None = None,
        fact_id: UUID | None = None,
        tx: Transaction | None = None,
    ) -> Fact:
        """Add a fact; see the other `add`."""
        work = self._inner.add(
            text, metadata=metadata, namespace=namespace, embedding=embedding, fact_id=fact_id, tx=bare(tx)
        )
        return self._thread.run(work)

    def add_many(self, facts: Iterable[NewFact], *, tx: Transaction | None = None) -> builtins.list[Fact]:
        """Add several facts, all or none; see the other `add_many`."""
        return self._thread.run(self._inner.add_many(facts, tx=bare(tx)))

    def supersede(
        self,
        fact_id: UUID,
        text: str,
        *,
        metadata: Mapping[str, object] | None = None,
        embedding: Sequence[float] | None = None,
        new_id: UUID | None = None,
    ) -> Fact:
        """Put a new fact in the place of one; see the other `supersede`."""
        work = self._inner.supersede(fact_id, text, metadata=metadata, embedding=embedding, new_id=new_id)
        return self._thread.run(work)

    def save(self, entity: Fact) -> Fact:
        """Create or replace a fact; see the other `save`."""
        return self._thread.run(self._inner.save(entity))

    def find(self, fact_id: UUID) -> Fact:
        """A fact; see the other `find`."""
        return self._thread.run(self._inner.find(fact_id))

    def get(self, fact_id: UUID) -> Fact:
        """The same as `find`."""
        return self._thread.run(self._inner.get(fact_id))

    def update(self, entity: Fact) -> Fact:
        """Replace what was read; see the other `update`."""
        return self._thread.run(self._inner.update(entity))

    def delete(self, fact_id: UUID) -> None:
        """Remove a fact; see the other `delete`."""
        self._thread.run(self._inner.delete(fact_id))

    def list(
        self,
        *,
        limit: int = 100,
        cursor: str | None = None,
        where: Mapping[str, Any] | None = None,
        namespace: str = "default",
    ) -> Page[Fact]:
        """A page of the current facts; see the other `list`."""
        return self._thread.run(self._inner.list(limit=limit, cursor=cursor, where=where, namespace=namespace))

    def history(self, fact_id: UUID) -> builtins.list[Fact]:
        """All facts that superseded each other; see the other `history`."""
        return self._thread.run(self._inner.history(fact_id))

    def forget(self, *, where: Mapping[str, Any] | None = None, namespace: str = "default") -> int:
        """Remove the facts that fit; see the other `forget`."""
        return self._thread.run(self._inner.forget(where=where, namespace=namespace))

    def search(
        self,
        query: str | None = None,
        *,
        embedding: Sequence[float] | None = None,
        limit: int = 10,
        where: Mapping[str, Any] | None = None,
        namespace: str = "default",
        mode: Mode = "hybrid",
    ) -> builtins.list[Found]:
        """The facts that fit best; see the other `search`."""
        work = self._inner.search(query, embedding=embedding, limit=limit, where=where, namespace=namespace, mode=mode)
        return self._thread.run(work)

    def vector_index(self, namespace: str = "default") -> VectorIndexState:
        """By what a namespace is searched; see the other `vector_index`."""
        return self._thread.run(self._inner.vector_index(namespace))

    def embedded(self, timeout: timedelta | float | None = None) -> None:
        """Wait until every fact has an embedding; see the other `embedded`."""
        self._thread.run(self._inner.embedded(timeout))
