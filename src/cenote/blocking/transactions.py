"""Transactions without `await`: the function runs on a thread of its own, and hands each statement to the loop."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from cenote.blocking.thread import LoopThread
from cenote.sql import transaction as transactions

T = TypeVar("T")


class Transaction:
    """See `cenote.Transaction`."""

    def __init__(self, thread: LoopThread, tx: transactions.Transaction) -> None:
        self._thread = thread
        self._tx = tx

    def fetch(self, query: str, *args: object) -> list[Any]:
        """All rows."""
        return self._thread.run(self._tx.fetch(query, *args))

    def fetchrow(self, query: str, *args: object) -> Any:
        """The first row, or None."""
        return self._thread.run(self._tx.fetchrow(query, *args))

    def fetchval(self, query: str, *args: object) -> Any:
        """The first column of the first row, or None."""
        return self._thread.run(self._tx.fetchval(query, *args))

    def execute(self, query: str, *args: object, timeout_ms: float | None = None) -> str:
        """The server's command tag; see `cenote.Transaction.execute`."""
        return self._thread.run(self._tx.execute(query, *args, timeout_ms=timeout_ms))

    def executemany(self, query: str, args: list[tuple[object, ...]]) -> None:
        """Run the query once for each tuple."""
        self._thread.run(self._tx.executemany(query, args))

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """What fails inside is undone, and the transaction goes on; see `cenote.Transaction.savepoint`."""
        inside = self._tx.savepoint()
        self._thread.run(inside.__aenter__())
        try:
            yield
        except BaseException as error:
            self._thread.run(inside.__aexit__(type(error), error, error.__traceback__))
            raise
        self._thread.run(inside.__aexit__(None, None, None))


def bare(tx: Transaction | None) -> transactions.Transaction | None:
    """What the verbs of the loop take for `tx`."""
    return None if tx is None else tx._tx


def waiting(thread: LoopThread, fn: Callable[[Transaction], T]) -> Any:
    """The coroutine function that runs `fn`; it may wait, so it does that on a thread of its own."""

    async def run(tx: transactions.Transaction) -> T:
        return await asyncio.to_thread(fn, Transaction(thread, tx))

    return run
