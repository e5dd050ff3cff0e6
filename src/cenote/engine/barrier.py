"""`flush()`: wait until what was acknowledged is in SQL (I1; flow rule 1, F-conn).

The ack floor passes superseded messages and may stop below the last sequence, so it is only half of the answer: every
key whose live entry lies above the starting point must be in SQL at that entry's version or newer.
"""

import asyncio
import time
from collections.abc import Coroutine
from uuid import UUID

from cenote.engine import entries
from cenote.engine.core import Core
from cenote.engine.lineage import flushes_into
from cenote.errors import CodecError, NotDurableError, OutcomeUnknownError, UnavailableError
from cenote.model import key as keys
from cenote.model.entry import Version

_POLL_S = (0.002, 0.005, 0.01, 0.02, 0.05)
_KEYS_PER_QUERY = 1_000
_FLOOR_STUCK_S = 0.1

Wanted = dict[tuple[UUID, str], Version]


class Barrier:
    """One call of `flush()`, bound to the connection it began on."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._generation = core.link.generation

    async def everything(self, timeout: float | None, *, up_to: int | None = None) -> None:
        """All acknowledged writes of everybody (or up to a sequence) are in SQL.

        Raises:
            NotDurableError: not within `timeout` seconds; nothing is lost.
            OutcomeUnknownError: the connection to NATS was replaced meanwhile.
        """
        await self._within(timeout, self._everything(up_to))

    async def agent(self, agent: keys.AgentRef, timeout: float | None) -> None:
        """All acknowledged writes of one agent are in SQL. Raises as `everything`."""
        await self._within(timeout, self._agent(agent))

    async def _within(self, timeout: float | None, work: Coroutine[None, None, None]) -> None:
        try:
            async with asyncio.timeout(timeout):
                await work
        except TimeoutError:
            raise NotDurableError(
                f"not everything is in PostgreSQL after {timeout} s",
                hint="nothing is lost; see `cenote status`",
            ) from None

    async def _everything(self, up_to: int | None) -> None:
        await self._flushing_began()
        start = up_to
        if start is None:
            info = await self._core.stream.info()
            start = info.last_seq
        await self._floor_reaches(start)
        while up_to is None and not await self._of_this_database():  # who leaves only waits, and asks SQL nothing
            await self._floor_reaches(start)
        if up_to is None:
            await self._committed(await self._live(">", start + 1))
        self._same_connection()

    async def _agent(self, agent: keys.AgentRef) -> None:
        await self._flushing_began()
        await self._committed(await self._live(f"{agent.token}.>", 1))
        self._same_connection()

    async def _flushing_began(self) -> None:
        """Before KV has been compared with SQL, and this start's durable begun, neither a floor nor a version that SQL
        holds is about what KV holds now (F-gen)."""
        core = self._core
        while core.mended != core.link.generation or core.current_durable is None:
            self._same_connection()
            await core.probe_once()
            if core.current_durable is None:
                await asyncio.sleep(_POLL_S[-1])

    async def _live(self, suffix: str, from_sequence: int) -> Wanted:
        core = self._core
        wanted: Wanted = {}
        prefix = core.stream.prefix
        async for message in core.live(prefix + suffix, from_sequence):
            token, key_token = core.split(message.subject)
            try:
                place = (keys.decode_agent(token).id, keys.sql_key(keys.decode_token(key_token)))
            except CodecError:
                continue  # our own meta entries, or foreign subjects: no flush will bring them to SQL
            stored = entries.listed(message, core.epochs)
            if not stored.clean:
                wanted[place] = stored.version
        return wanted

    async def _floor_reaches(self, start: int) -> None:
        core = self._core
        polls = iter(_POLL_S)
        floor, since = -1, time.monotonic()
        while True:
            self._same_connection()
            name = core.current_durable
            consumer = None if name is None else await core.consumer(name)
            if consumer is not None:
                if consumer.floor >= start:
                    return
                if consumer.floor != floor:
                    floor, since = consumer.floor, time.monotonic()
                elif time.monotonic() - since > _FLOOR_STUCK_S:
                    # The floor may stop below last_seq when the tail is gone: is anything left to wait for?
                    if not await self._any_live(floor + 1, start):
                        return
                    since = time.monotonic()
            else:
                await core.probe_once()
            await asyncio.sleep(next(polls, _POLL_S[-1]))

    async def _of_this_database(self) -> bool:
        """Whether what the durable has settled was committed by the very PostgreSQL that answers now (flow rule 5)."""
        core, name = self._core, self._core.current_durable
        try:
            identity = await core.db.identity()
        except UnavailableError:
            identity = None  # the caller's own timeout decides how long that may last
        if name is not None and identity is not None and flushes_into(name, identity):
            return True
        await core.probe_once()
        await asyncio.sleep(_POLL_S[-1])
        return False

    async def _any_live(self, first: int, last: int) -> bool:
        core = self._core
        async for message in core.live(core.stream.prefix + ">", first):
            return message.sequence <= last
        return False

    async def _committed(self, wanted: Wanted) -> None:
        polls = iter(_POLL_S)
        while wanted:
            self._same_connection()
            places = list(wanted)[:_KEYS_PER_QUERY]
            try:
                found = await self._core.table.versions(places)
            except UnavailableError:
                found = {}  # SQL is away: the caller's own timeout decides how long that may last
            done = 0
            for place, (epoch, revision, _) in found.items():
                if Version(epoch, revision) >= wanted[place]:
                    del wanted[place]
                    done += 1
            if done < len(places):
                await asyncio.sleep(next(polls, _POLL_S[-1]))

    def _same_connection(self) -> None:
        if self._core.link.generation != self._generation or not self._core.link.connected:
            raise OutcomeUnknownError(
                "the connection to NATS was replaced while waiting for PostgreSQL", hint="call flush() again"
            )
