"""From any thread and any event loop to the one on which a store lives."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from cenote import blocking
from cenote.errors import RejectedError, SetupError
from cenote.store import Store

T = TypeVar("T")


class Bridge:
    """The way to a store: an async one lives on the loop that runs now, a blocking one on a thread of its own.

    Raises:
        SetupError: an async store, and no event loop runs here.
    """

    def __init__(self, store: Store | blocking.Store) -> None:
        if isinstance(store, blocking.Store):
            self.store, self._loop = store.inside()
            return
        try:
            self.store, self._loop = store, asyncio.get_running_loop()
        except RuntimeError:
            words = "an async store is of use only on its event loop"
            raise SetupError(
                words, hint="make this within that loop, or give it a store of cenote.blocking.open()"
            ) from None

    async def cross(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it where the store lives. A cancellation goes along."""
        if asyncio.get_running_loop() is self._loop:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it where the store lives and wait for it. RejectedError on the store's own thread, which would wait for
        itself."""
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is self._loop:
            work.close()
            raise RejectedError(
                "a call that waits, on the event loop that would have to answer it",
                hint="use the async twin here, or call from another thread",
            )
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in the waiting thread; nothing happens to a future that is done
            raise
