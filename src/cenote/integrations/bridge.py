"""From any thread and any event loop to the one on which a store lives."""

import asyncio
import os
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from cenote import blocking
from cenote.blocking.thread import LoopThread
from cenote.errors import OutcomeUnknownError, RejectedError, SetupError
from cenote.store import Store

T = TypeVar("T")


class Bridge:
    """The way to a store: an async one lives on the loop that runs now, a blocking one on a thread of its own.

    Raises:
        SetupError: an async store, and no event loop runs here. From each call: the store is closed with its loop, or
            belongs to the process that we were forked from.
    """

    def __init__(self, store: Store | blocking.Store) -> None:
        self._pid = os.getpid()
        self._thread: LoopThread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        if isinstance(store, blocking.Store):
            self.store, self._thread = store.inside()
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
        return await asyncio.wrap_future(self._submit(work))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it where the store lives and wait for it.

        Raises:
            RejectedError: on the store's own thread, which would wait for itself.
            OutcomeUnknownError: the store was closed meanwhile.
        """
        if self._loop is not None and asyncio._get_running_loop() is self._loop:
            work.close()
            raise RejectedError(
                "a call that waits, on the event loop that would have to answer it",
                hint="use the async twin here, or call from another thread",
            )
        future = self._submit(work)
        try:
            return future.result()
        except CancelledError:
            raise OutcomeUnknownError("the store was closed while this call was under way") from None
        except BaseException:
            future.cancel()  # Ctrl-C in the waiting thread; nothing happens to a future that is done
            raise

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if self._thread is not None:
            return self._thread.submit(work)
        if self._loop is None or self._loop.is_closed() or os.getpid() != self._pid:
            work.close()
            raise SetupError("the event loop of this store does not run here", hint="open a store in this process")
        return asyncio.run_coroutine_threadsafe(work, self._loop)
