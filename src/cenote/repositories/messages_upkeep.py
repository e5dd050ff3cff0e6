"""Partitions of the log: made before their time, and dropped after it.

The active flusher makes them ahead. Whoever sends looks that there is one, too, and makes it where nobody did; where
that may not be (a role that must not create tables, somebody's lock), messages go to the net, `log_default`, from where
they are moved when their partition is made: no send fails for want of a partition.
"""

import asyncio
import logging
import time
from typing import Final

from cenote.engine.core import Core
from cenote.errors import CenoteError, UnavailableError
from cenote.sql.messages import MessageTable

log = logging.getLogger("cenote.messages")

_EVERY_S: Final = 60.0
_AGAIN_S: Final = 30.0  # after a partition could not be made
_SLACK_US: Final = 60_000_000  # nearer to the end than this, or than a tenth of a partition, a sender looks
_NET_ROUNDS: Final = 100  # partitions made for the net at a time


class Upkeep:
    """Keeps the log divided."""

    def __init__(self, core: Core, table: MessageTable) -> None:
        self._core = core
        self._table = table
        self._config = core.config.messages
        self._covered_us = 0
        self._seen_us = 0
        self._next_look = 0.0
        self._lock = asyncio.Lock()

    def seen(self, place_us: int) -> None:
        """A message has got this place: PostgreSQL's clock may be ahead of ours."""
        self._seen_us = max(self._seen_us, place_us)

    @property
    def every_s(self) -> float:
        """How often `tend` is due: well before the partitions made ahead are full."""
        return min(_EVERY_S, self._config.partition_s / 2)

    async def ready(self) -> None:
        """Before a message is sent: see that it will find a partition. Never fails."""
        if self._near() and time.monotonic() >= self._next_look:
            async with self._lock:
                if not self._near():
                    return
                try:
                    await self._make(ahead=0)
                except UnavailableError:
                    return  # the send will tell
                except CenoteError as error:
                    log.warning("messages go to the default partition for now: %s", error)
                if self._near():
                    self._next_look = time.monotonic() + _AGAIN_S

    async def tend(self) -> None:
        """What the active flusher does now and then. A log that nobody uses stays as it is."""
        found = await self._table.partitions()
        if not found.bounds and found.net_us is None:
            return
        await self._make(ahead=self._config.ahead_count)
        if self._config.retention_s is not None:
            dropped = await self._table.drop_partitions(float(self._config.retention_s))
            if dropped:
                log.info("dropped %d partitions of messages for their age", dropped)

    def _near(self) -> bool:
        return max(self._core.now_ms() * 1000, self._seen_us) + self._slack_us() >= self._covered_us

    def _slack_us(self) -> int:
        return min(_SLACK_US, self._config.partition_s * 100_000)

    async def _make(self, ahead: int) -> None:
        seconds, search = self._config.partition_s, self._config.search_index
        found = await self._table.partitions()
        for _ in range(_NET_ROUNDS):
            if found.net_us is None:
                break
            await self._table.make_partition(found.net_us, seconds, search=search)
            found = await self._table.partitions()
        until = found.covered_us()
        enough = found.at_us + self._slack_us() + ahead * seconds * 1_000_000
        while until <= enough:
            until = await self._table.make_partition(until, seconds, search=search)
        self._covered_us = until
