"""The index on the embeddings of large namespaces, where PostgreSQL has pgvector (decision 0009).

It proposes candidates; their exact cosines decide (`knowledge_vectors.py`), and wherever it has not enough of them the
exact search answers. So it costs recall only, never results.
"""

import logging
import time
from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

from cenote import limits
from cenote.engine.core import Core
from cenote.model.filters import Filter
from cenote.repositories.knowledge_entity import numbers
from cenote.repositories.knowledge_vectors import Vectors, ranked
from cenote.repositories.tasks_asking import Asking
from cenote.sql.nearness import DIMENSIONS_MAX, Near, NearGone, NearTables, Server, Space

log = logging.getLogger("cenote.engine")

EVERY_S: Final = 2.0
_LOOK_S: Final = 30.0  # so often a namespace that has grown gets its table
_SWEEP_S: Final = 600.0
_BUDGET_S: Final = 1.0  # one turn of filling; it goes on at the next
_KNOWN_S: Final = 5.0  # so long a process remembers which table a namespace has
_LIMIT_MAX: Final = 100  # more results than this are found exactly


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorIndexState:
    """How searches by embedding in a namespace find what is nearest.

    Attributes:
        back_end: "pgvector": its index narrows the search down; "exact": all embeddings are compared.
        why: why it is this one.
        embeddings: of current facts.
        indexed: how many of them the index has; the others are compared one by one.
    """

    back_end: Literal["pgvector", "exact"]
    why: str
    embeddings: int
    indexed: int


class VectorIndex:
    """What searches of one process ask."""

    def __init__(self, core: Core, vectors: Vectors) -> None:
        self._config = core.config.knowledge
        self._tables = NearTables(core.db)
        self._vectors = vectors
        self._asking = Asking(core)
        self._known: dict[str, tuple[float, Near | None]] = {}

    async def nearest(
        self, namespace: str, asked: bytes, limit: int, found: Filter
    ) -> list[tuple[UUID, float]] | None:  # fmt: skip
        """The facts with the highest cosine; None: all there are have to be compared."""
        if self._config.vector_index == "off" or limit > _LIMIT_MAX:
            return None
        near = await self._near(namespace)
        if near is None:
            return None
        count = 2 * limit + 50
        try:
            candidates, tail = await self._asking.again(
                lambda: self._tables.search(namespace, near, numbers(asked), count, found)
            )
        except NearGone as error:
            log.info("the vector index of a namespace is gone; its embeddings are compared one by one: %s", error)
            self._known.pop(namespace, None)
            return None
        if len(candidates) < count:
            return None
        best = ranked(candidates, asked, limit)
        if tail:
            best += await self._asking.again(lambda: self._vectors.nearest(namespace, tail, asked, limit))
        return sorted(best, key=lambda one: (-one[1], one[0]))[:limit]

    async def state(self, namespace: str) -> VectorIndexState:
        """See `Knowledge.vector_index`."""
        counts = await self._asking.again(lambda: self._tables.counts(namespace))
        server = await self._asking.again(self._tables.server)
        embeddings, indexed = (counts.facts, counts.indexed) if counts else (0, 0)
        if self._config.vector_index == "off":
            why = "knowledge.vector_index is off"
        elif server.installed is not None and server.why_not is not None:
            why = server.why_not
        elif counts is not None and counts.ready and server.why_not is None:
            return VectorIndexState(
                back_end="pgvector", why=f"pgvector {server.installed}, with an index that is whole",
                embeddings=embeddings, indexed=indexed,
            )  # fmt: skip
        else:
            why = self._why_exact(server, embeddings, counts.dimensions if counts else 0)
        return VectorIndexState(back_end="exact", why=why, embeddings=embeddings, indexed=0)

    def _why_exact(self, server: Server, embeddings: int, dimensions: int) -> str:
        if server.why_not is not None and not (server.installed is None and server.available and server.may_create):
            return server.why_not + _to_type(server)
        if dimensions > DIMENSIONS_MAX:
            return f"{dimensions} dimensions; an index takes up to {DIMENSIONS_MAX}"
        if embeddings < self._config.vector_index_rows:
            return f"{embeddings} embeddings; the index comes at {self._config.vector_index_rows}"
        return "the index is being made by the process that flushes"

    async def _near(self, namespace: str) -> Near | None:
        now = time.monotonic()
        until, near = self._known.get(namespace, (0.0, None))
        if now >= until:
            near = await self._asking.again(lambda: self._tables.near(namespace))
            if len(self._known) >= limits.FACTS_SPACES_MAX:
                self._known.clear()
            self._known[namespace] = now + _KNOWN_S, near
        return near


class IndexUpkeep:
    """Makes the tables, fills them and their indexes: a chore of the process that flushes."""

    def __init__(self, core: Core) -> None:
        self._config = core.config.knowledge
        self._tables = NearTables(core.db)
        self._spaces: list[Space] = []
        self._schema: str | None = None
        self._look_at = 0.0
        self._sweep_at = time.monotonic() + _SWEEP_S
        self._told: str | None = None

    async def tend(self) -> None:
        """One turn. Raises what PostgreSQL says; it goes on at the next."""
        if self._config.vector_index == "off":
            return
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            await self._look()
        if self._schema is None:
            return
        sweep = now >= self._sweep_at
        if sweep:
            self._sweep_at = now + _SWEEP_S
        for space in self._spaces:
            await self._tend(space, self._schema, now + _BUDGET_S, sweep=sweep)

    async def _look(self) -> None:
        self._schema = None
        self._spaces = await self._tables.spaces(self._config.vector_index_rows)
        if not self._spaces:
            return
        server = await self._tables.server()
        if server.installed is None and server.available is not None and server.may_create:
            await self._tables.bring()
            server = await self._tables.server()
        if server.why_not is not None:
            self._tell(f"large namespaces are searched without an index: {server.why_not}{_to_type(server)}")
            return
        self._schema = server.schema
        for space in self._spaces:
            if space.near is not None and not space.whole:
                await self._tables.end(space)
        if await self._tables.build_tail():
            for space in await self._tables.spaces(self._config.vector_index_rows):
                if space.near is None:
                    assert self._schema is not None  # an extension is in a schema
                    await self._tables.begin(space, self._schema)
            self._spaces = await self._tables.spaces(self._config.vector_index_rows)
        else:
            self._spaces, self._look_at = [], 0.0

    async def _tend(self, space: Space, schema: str, until: float, *, sweep: bool) -> None:
        if space.near is None:
            return
        near = Near(space.near, space.dimensions, schema)
        if space.ready and not space.built:
            await self._tables.ready(space, ready=False)
        filled = await self._fill(space, near, until)
        if filled and not space.built:
            log.info("a vector index is built: facts of %d dimensions", space.dimensions)
            if await self._tables.build(near):
                await self._tables.ready(space, ready=True)
            self._look_at = 0.0
        elif space.built and not space.ready:
            await self._tables.ready(space, ready=True)
            self._look_at = 0.0
        if sweep:
            await self._tables.sweep(space, near)

    async def _fill(self, space: Space, near: Near, until: float) -> bool:
        """Whether the tail is all but empty."""
        after = 0
        while due := await self._tables.due(space.namespace, limits.FACTS_INDEX_COUNT, after):
            # What is not of its namespace's length is left where the exact search leaves it: out.
            fits = [(number, fact_id, numbers(one)) for number, fact_id, one in due if len(one) == 4 * space.dimensions]
            if fits:
                await self._tables.fill(space.namespace, near, fits)
            after = due[-1][0]
            if time.monotonic() > until:
                return len(due) < limits.FACTS_INDEX_COUNT
        return True

    def _tell(self, what: str) -> None:
        if what != self._told:
            log.warning("%s", what)
            self._told = what


def _to_type(server: Server) -> str:
    if server.installed is None and server.available is not None and not server.may_create:
        return ", and this role may not: CREATE EXTENSION vector"
    return ""
