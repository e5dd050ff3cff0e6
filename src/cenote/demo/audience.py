"""Those for whom the swarm works: they hear what workers say while they say it, and ask in the end what is known."""

import asyncio
from collections.abc import AsyncIterator, Set
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec

import cenote
from cenote.demo import careful

QUESTION = "Which module compresses data?"
QUERY = "compress data"  # by words all of them must be there: a question mark and its "which" are in no fact
_ANSWERS = 3
_EMBED_S = 60.0
_HEAR_S_MAX = 30.0


@dataclass(frozen=True)
class Answer:
    """A fact that was found."""

    score: float
    text: str


def embedder() -> str | None:
    """What makes questions answered by meaning, if it is installed; the demo does not ask for it."""
    return "wordllama" if find_spec("wordllama") else None


class Audience:
    """Of one run: `space` is its conversation, and its namespace of knowledge."""

    def __init__(self, store: cenote.Store, space: str) -> None:
        self._store = store
        self._space = space
        self.heard: list[str] = []
        self._news = asyncio.Condition()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Hear all messages for as long as this is entered."""
        ear = asyncio.create_task(self._listen())
        try:
            yield
        finally:
            ear.cancel()
            await asyncio.wait([ear])

    async def _listen(self) -> None:
        async with aclosing(self._store.messages.subscribe(conversation=self._space, since=0)) as messages:
            async for message in messages:
                async with self._news:
                    self.heard.append(str(message.id))
                    self._news.notify_all()

    async def caught_up(self, wanted: Set[str]) -> None:
        """Wait until all of these have been heard, or that takes too long; the verdict says which have not."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_HEAR_S_MAX), self._news:
                await self._news.wait_for(lambda: wanted <= set(self.heard))

    async def ask(self) -> list[Answer]:
        """What the swarm knows about the question, the best answers first."""
        knowledge = self._store.knowledge
        if self._store.config.knowledge.embedder is not None:
            await knowledge.embedded(_EMBED_S)
        search = knowledge.search
        found = await careful.patiently(lambda: search(QUERY, namespace=self._space, limit=_ANSWERS))
        return [Answer(round(one.score, 4), one.fact.text) for one in found]
