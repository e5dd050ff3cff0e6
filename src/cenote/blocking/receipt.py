"""A receipt without `await`."""

from datetime import timedelta
from typing import Self

from cenote.blocking.thread import LoopThread
from cenote.engine import receipt as receipts
from cenote.model.entry import Version


class Receipt:
    """See `cenote.Receipt`."""

    __slots__ = ("_receipt", "_thread")

    def __init__(self, thread: LoopThread, receipt: receipts.Receipt) -> None:
        self._thread = thread
        self._receipt = receipt

    @property
    def key(self) -> str:
        """The key that was written."""
        return self._receipt.key

    @property
    def version(self) -> Version:
        """Where the write stands in the key's history; usable as `if_version`."""
        return self._receipt.version

    @property
    def durability(self) -> str:
        """ "kv", or "sql" once PostgreSQL is known to have committed it."""
        return self._receipt.durability

    def __repr__(self) -> str:
        return repr(self._receipt)

    def durable(self, timeout: timedelta | float | None = None) -> Self:
        """Wait until PostgreSQL has committed this write or a newer one; see `cenote.Receipt.durable`."""
        self._thread.run(self._receipt.durable(timeout))
        return self
