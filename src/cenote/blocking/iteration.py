"""Plain iterators over what a store yields on its background thread."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

from cenote.blocking.thread import LoopThread
from cenote.errors import SetupError

T = TypeVar("T")


class Iteration(Generic[T]):
    """A plain iterator over what the store yields. One thread iterates at a time; any thread may `close` it, and an
    iteration that waits ends then."""

    def __init__(self, thread: LoopThread, source: AsyncIterator[T], *, page: int) -> None:
        self._thread = thread
        self._source = cast("AsyncGenerator[T]", source)
        self._page = page
        self._ready: deque[T] = deque()
        self._filling: asyncio.Task[Any] | None = None
        self._over = False
        self._turn = threading.Lock()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._turn:
            if not self._ready and not self._over:
                try:
                    self._thread.call(self._fill())
                except CancelledError:
                    self._over = True  # closed by another thread, or with its store
            if not self._ready:
                raise StopIteration
            return self._ready.popleft()

    def close(self) -> None:
        """End it. Fine when it has ended, and when the store is closed."""
        self._over = True
        try:
            self._thread.call(self._end())
        except (SetupError, CancelledError):
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _fill(self) -> None:
        self._filling = asyncio.current_task()
        try:
            while len(self._ready) < self._page:
                self._ready.append(await anext(self._source))
        except StopAsyncIteration:
            self._over = True
        finally:
            self._filling = None

    async def _end(self) -> None:
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.wait([self._filling])
        await self._source.aclose()
