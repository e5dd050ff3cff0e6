"""Embeds facts after they were acknowledged: rows without an embedding are the queue (decision 0006)."""

import asyncio
import logging
from typing import Final

from cenote import limits
from cenote.engine.core import Core
from cenote.errors import CenoteError
from cenote.model import key as keys
from cenote.repositories.knowledge_embedder import Embedder, embeddings, named
from cenote.sql.knowledge import Due, FactTable

_log: Final = logging.getLogger(__name__)
_AGAIN_S: Final = 0.5


class Worker:
    """The one of this process; it runs from the first use of knowledge on, where there is an embedder."""

    def __init__(self, core: Core, table: FactTable) -> None:
        self._core = core
        self._table = table
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        core.on_close.append(self._close)

    def stir(self) -> None:
        """There may be something to embed."""
        if self._core.config.knowledge.embedder is None or self._closed:
            return
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="cenote-embed")

    async def done(self) -> None:
        """Return when every current fact has its embedding."""
        while (due_s := await self._table.waiting()) is not None:
            self.stir()
            await asyncio.sleep(min(max(due_s, 0.02), _AGAIN_S))

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                embedder = named(self._core.config.knowledge.embedder)
                while due := await self._table.claim(limits.FACTS_EMBED_COUNT, limits.FACTS_EMBED_S):
                    await self._embed(embedder, due)
                due_s = await self._table.waiting()
            except CenoteError as error:  # PostgreSQL is away, or the embedder is not there yet: facts wait in SQL
                _log.warning("facts wait for their embeddings: %s", error)
                due_s = None
            idle_s = limits.FACTS_IDLE_S if due_s is None else min(max(due_s, 0.02), limits.FACTS_IDLE_S)
            try:
                async with asyncio.timeout(idle_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _embed(self, embedder: Embedder, due: list[Due]) -> None:
        try:
            found = await embeddings(embedder, [keys.from_sql_key(one.text) for one in due])
        except Exception as error:  # noqa: BLE001  # an embedder is the user's, and may raise anything
            _log.warning("embedder %r failed on %d facts: %r", embedder.name, len(due), error)
            await self._table.not_embedded([one.fact_id for one in due])
            return
        fits: list[tuple[Due, bytes]] = []
        for one, embedding in zip(due, found, strict=True):
            length = len(embedding) // 4
            if await self._table.dimensions(one.namespace, length) == length:
                fits.append((one, embedding))
        if fits:
            await self._table.embedded([(one.fact_id, one.version, embedding) for one, embedding in fits])
        wrong = {one.fact_id for one in due} - {one.fact_id for one, _ in fits}
        if wrong:
            _log.warning("embedder %r: its dimensions do not fit the namespaces of %d facts", embedder.name, len(wrong))
            await self._table.not_embedded(list(wrong))

    def _close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
