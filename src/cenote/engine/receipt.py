"""Receipts: what a write's caller holds (I1; flow rule 1 with F-time and F-conn)."""

import asyncio
from datetime import timedelta
from typing import Self

from cenote.engine.core import Core
from cenote.engine.entries import Target
from cenote.errors import NotDurableError, OutcomeUnknownError
from cenote.model.duration import seconds
from cenote.model.entry import Stored


class Receipt:
    """The acknowledgement of one write.

    Attributes:
        key: the key that was written.
        version: where the write stands in the key's history; usable as `if_version`.
        durability: "kv", or "sql" once PostgreSQL is known to have committed it.
    """

    __slots__ = ("_core", "_generation", "_sent_ms", "_target", "durability", "version")

    def __init__(self, target: Target, stored: Stored, core: Core) -> None:
        self._target = target
        self._core = core
        self._generation = core.link.generation
        self._sent_ms = stored.t0_ms
        self.version = stored.version
        self.durability = "kv"

    @property
    def key(self) -> str:
        """The key that was written."""
        return self._target.key

    def __repr__(self) -> str:
        return f"Receipt(key={self.key!r}, version={str(self.version)!r}, durability={self.durability!r})"

    async def durable(self, timeout: timedelta | float | None = None) -> Self:
        """Wait until PostgreSQL has committed this write or a newer one of the same key; returns itself.

        Args:
            timeout: how long to wait; None waits as long as it takes.

        Raises:
            NotDurableError: the time is over; the write is still safe in KV and will reach SQL.
            OutcomeUnknownError: the connection to NATS was replaced since the write.
        """
        if self.durability == "sql":
            return self
        limit_s = seconds(timeout, "timeout")
        core = self._core
        if core.link.generation != self._generation or not core.link.connected:
            raise OutcomeUnknownError(
                "the connection to NATS was replaced since this write", key=self.key,
                hint="read the key, or call store.flush()",
            )  # fmt: skip
        try:
            async with asyncio.timeout(limit_s):
                since_us = (self._sent_ms - core.skew_ms) * 1000
                await core.durability.wait(self._target, self.version.revision, since_us)
        except TimeoutError:
            raise NotDurableError(
                f"PostgreSQL has not committed {self.key!r} within {limit_s} s", key=self.key,
                hint="the write is safe in KV; see `cenote status` for the backlog",
            ) from None  # fmt: skip
        self.durability = "sql"
        return self
