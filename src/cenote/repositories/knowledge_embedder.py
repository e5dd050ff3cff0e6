"""Embedders: what turns texts into numbers whose angle says how near their meanings are."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, runtime_checkable

from cenote.errors import RejectedError, SetupError
from cenote.repositories.knowledge_entity import unit


@runtime_checkable
class Embedder(Protocol):
    """What `register_embedder` takes."""

    @property
    def name(self) -> str:
        """By which the setting `knowledge.embedder` names it."""
        ...

    @property
    def dimensions(self) -> int:
        """How many numbers an embedding has."""
        ...

    def embed(self, texts: list[str], /) -> Sequence[Sequence[float]] | Awaitable[Sequence[Sequence[float]]]:
        """One embedding for each text. A plain function runs in a thread, an `async` one on the loop."""
        ...


_registered: Final[dict[str, Callable[[], Embedder]]] = {}


def register_embedder(embedder: Embedder) -> None:
    """Let the setting `knowledge.embedder` name it, in this process; another of that name is replaced."""
    if not isinstance(embedder, Embedder):
        raise RejectedError("embedder: `name`, `dimensions` and `embed` are needed")
    _registered[embedder.name] = lambda: embedder


def named(name: str | None) -> Embedder:
    """The embedder of a setting. SetupError says what to install, or to set."""
    if name is None:
        raise SetupError(
            "this process has no embedder, so it cannot search by the meaning of a text",
            hint="pip install 'cenote[embed]' and set knowledge.embedder to wordllama, or give an embedding",
        )
    if name not in _registered:
        raise SetupError(
            f"knowledge.embedder: there is no embedder {name!r}",
            hint="cenote.register_embedder(…) first; wordllama comes with pip install 'cenote[embed]'",
        )
    return _registered[name]()


async def embeddings(embedder: Embedder, texts: list[str]) -> list[bytes]:
    """One for each text, as SQL keeps them; what the embedder raises comes out."""
    if inspect.iscoroutinefunction(embedder.embed):
        found = await embedder.embed(texts)
    else:
        found = await asyncio.to_thread(embedder.embed, texts)
        if inspect.isawaitable(found):
            found = await found
    if len(found) != len(texts):
        raise RejectedError(f"embedder {embedder.name!r}: {len(found)} embeddings for {len(texts)} texts")
    return [unit(one) for one in found]


class _WordLlama:
    """WordLlama's smallest model, from the files of its wheel alone."""

    name = "wordllama"
    dimensions = 256

    def __init__(self) -> None:
        self._model: Any = None

    def embed(self, texts: list[str], /) -> Sequence[Sequence[float]]:
        if self._model is None:
            self._model = self._loaded()
        # Of a text without any word it knows, nothing but zeros: such a text is like no other.
        found: list[list[float]] = self._model.embed(texts).tolist()
        return [one if any(one) else [1e-9] * self.dimensions for one in found]

    def _loaded(self) -> Any:
        from pathlib import Path

        try:
            import wordllama
        except ImportError:
            raise SetupError(
                "knowledge.embedder is wordllama, which is not installed", hint="pip install 'cenote[embed]'"
            ) from None
        # Without cache_dir it looks for its own tokenizer everywhere but in its package.
        package = Path(wordllama.__file__).parent
        return wordllama.WordLlama.load(cache_dir=package, disable_download=True)


_wordllama: Final = _WordLlama()
_registered["wordllama"] = lambda: _wordllama
