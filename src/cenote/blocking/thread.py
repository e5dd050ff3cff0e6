"""The background thread of one store, and how a call gets there and back."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from cenote.errors import OutcomeUnknownError, RejectedError, SetupError

T = TypeVar("T")


class LoopThread:
    """The background thread of one store. After `stop` it takes no call, and what was under way has ended."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="cenote-blocking", daemon=True)
        self._thread.start()

    @property
    def ours(self) -> bool:
        """Whether this process made it; a forked child has no such thread."""
        return os.getpid() == self._pid

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for it.

        Raises:
            SetupError: the store is closed, or belongs to the process we were forked from.
            RejectedError: called from the background thread itself, which would wait for ever.
            OutcomeUnknownError: the store was closed meanwhile.
        """
        try:
            return self.call(work)
        except CancelledError:
            raise OutcomeUnknownError("the store was closed while this call was under way") from None

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """The same, but a cancellation stays one."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in the waiting thread; nothing happens to a future that is done
            raise

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine there; its outcome to come. Raises SetupError and RejectedError as `run`."""
        try:
            self._check()
            with self._lock:
                if self._stopped:
                    raise SetupError("this store is closed", hint="open it again with cenote.blocking.open()")
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        except BaseException:
            work.close()
            raise

    def stop(self) -> None:
        """Cancel what is under way and end the thread."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _check(self) -> None:
        if not self.ours:
            raise SetupError(
                f"this store was opened by process {self._pid}, and does not survive a fork",
                hint="open another one in this process",
            )
        if threading.current_thread() is self._thread:
            raise RejectedError("a change function must not call the store: it runs on the store's own thread")

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()
