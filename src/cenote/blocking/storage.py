"""The four verbs of `store.data` without `await`."""

from typing import Any

from cenote import storage
from cenote.blocking.thread import LoopThread
from cenote.storage import Match


class DataStorage:
    """See `cenote.Store.data`; threads may share it."""

    def __init__(self, thread: LoopThread, inner: storage.DataStorage) -> None:
        self._thread = thread
        self._inner = inner

    def store(self, key: str, value: object) -> None:
        """Keep a value under a key."""
        self._thread.run(self._inner.store(key, value))

    def retrieve(self, key: str) -> Any:
        """The value. NotFoundError when there is none."""
        return self._thread.run(self._inner.retrieve(key))

    def remove(self, key: str) -> None:
        """Remove it; removing an absent one is fine."""
        self._thread.run(self._inner.remove(key))

    def search(self, query: Any, *, limit: int = 10) -> list[Match]:
        """What fits."""
        return self._thread.run(self._inner.search(query, limit=limit))
