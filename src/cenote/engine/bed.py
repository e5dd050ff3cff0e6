"""Sleep: one agent leaves KV and L1 without loss (I1, I11; flow rules 1, 2, 5 and 7, F-aged).

First all of it is in SQL. Then the flusher's floor passes a mark that is written behind it, and is recorded; when that
is the minimum eviction age ago, and PostgreSQL is still the one that the durable flushes into, a `STREAM.PURGE` with
the agent's filter removes what lies below the mark: so every entry removed was flushed that long ago, and is older than
that age. What is written meanwhile lies above and stays. The mark also stays, so the last entry of the stream never
leaves, and its end does not move.
"""

import asyncio
import time
from typing import NamedTuple

from cenote import limits, points
from cenote.engine.barrier import Barrier
from cenote.engine.core import Core
from cenote.engine.incarnation import durable_prefix, incarnation
from cenote.engine.lease import Board
from cenote.engine.lifecycle import Lifecycle, Work
from cenote.engine.lineage import Lineage
from cenote.errors import NotDurableError, OutcomeUnknownError, UnavailableError
from cenote.lifecycle import Event
from cenote.model import key as keys

_POLL_S = 0.02
_MARK = f"{keys.RESERVED}life.mark"


class Slept(NamedTuple):
    """What left KV: the number of entries, deletes and copies included."""

    entries: int


class _Aged(NamedTuple):
    """What was known to be flushed, and when that was seen."""

    end: int
    durable: str
    generation: int
    lineage: Lineage
    seen_s: float


class Bed:
    """Puts agents aside."""

    def __init__(self, core: Core, lifecycle: Lifecycle) -> None:
        self._core = core
        self._lifecycle = lifecycle

    async def sleep(self, agent: keys.AgentRef, timeout: float | None) -> Slept:
        """See `AgentState.sleep`."""
        began_s = time.monotonic()
        wait_ms = self._core.config.retry.deadline_ms if timeout is None else timeout * 1000
        async with self._lifecycle.sole(agent, Event.SLEEP, Event.SLEPT, wait_ms) as work:
            left_s = None if timeout is None else max(0.0, timeout - (time.monotonic() - began_s))
            try:
                async with asyncio.timeout(left_s):
                    entries = await self._put_aside(agent, work)
            except TimeoutError:
                raise NotDurableError(
                    f"PostgreSQL did not have all of the agent for long enough within {timeout} s",
                    hint="nothing is lost, nothing has left KV; see `cenote status`",
                ) from None
            work.details["entries"] = entries
        return Slept(entries)

    async def _put_aside(self, agent: keys.AgentRef, work: Work) -> int:
        core = self._core
        await Barrier(core).agent(agent, None)
        if points.armed:
            await points.hit("sleep.flushed")
        if not await self._lifecycle.held(agent):
            return 0
        aged = await self._floor()
        if points.armed:
            await points.hit("sleep.floor")
        await self._wait(aged)
        entries = await self._purge(agent, aged, work)
        core.cache.forget_all(core.agent_filter(agent)[:-1])
        if points.armed:
            await points.hit("sleep.purged")
        return entries

    async def _floor(self) -> _Aged:
        """Everything up to now is flushed, by the word of a durable that flushes into the PostgreSQL that answers."""
        core = self._core
        generation, lineage = core.link.generation, Lineage(core, Board())
        subject = f"{core.stream.prefix}{_MARK}".encode()
        end = await core.stream.publish(subject, b"", b"", core.config.kv.request_timeout_ms) - 1
        while True:
            name = core.current_durable
            if name is not None:
                await lineage.follow(name)
                consumer = await core.consumer(name)
                if consumer is not None and consumer.floor >= end:
                    self._same(generation)
                    return _Aged(end, name, generation, lineage, time.monotonic())
            self._same(generation)
            await asyncio.sleep(_POLL_S)

    async def _wait(self, aged: _Aged) -> None:
        age_s = (limits.EVICT_AGE_MIN_MS + self._core.skew_ms) / 1000
        await asyncio.sleep(max(0.0, aged.seen_s + age_s - time.monotonic()))

    async def _purge(self, agent: keys.AgentRef, aged: _Aged, work: Work) -> int:
        """All facts anew, less than a second before; sent once, never repeated."""
        core = self._core
        await work.demand()
        await aged.lineage.demand()
        facts_s = time.monotonic()
        info = await core.stream.info()
        start = incarnation(core.link, info)
        if info.created != core.epochs.created or not aged.durable.startswith(
            durable_prefix(core.epochs.newest, start)
        ):
            raise UnavailableError("NATS was restarted, or has another leader: nothing was put aside")
        below = aged.end + 1
        assert below <= info.last_seq, "flow rule 2: N <= last_seq"
        if points.armed:
            await points.hit("sleep.decided")
        self._same(aged.generation)
        if (time.monotonic() - facts_s) * 1000 >= limits.PURGE_FACTS_AGE_MS_MAX:
            raise UnavailableError("this process was stopped just before a purge: nothing was put aside")
        return await core.stream.purge_below(
            below, generation=aged.generation, subjects=core.agent_filter(agent)
        )  # fmt: skip

    def _same(self, generation: int) -> None:
        if self._core.link.generation != generation or not self._core.link.connected:
            raise OutcomeUnknownError(
                "the connection to NATS was replaced while an agent was put aside", hint="call sleep() again"
            )
