"""Whole agents come back: one, or many side by side, noted in their lives."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing

from cenote import limits
from cenote.engine.hydrator import Hydrated, Hydrator, Progress
from cenote.engine.lifecycle import Lifecycle, Work
from cenote.errors import CenoteError, PartialError
from cenote.lifecycle import Event
from cenote.model import key as keys

Tell = Callable[[Progress], object]


class Hydration:
    """Brings agents into KV on purpose. Several may bring the same one: whoever comes second finds its copies refused,
    and a purge that puts the agent aside removes none that came after it began."""

    def __init__(self, hydrator: Hydrator, lifecycle: Lifecycle) -> None:
        self._hydrator = hydrator
        self._lifecycle = lifecycle

    async def whole(self, agent: keys.AgentRef, after: str | None, tell: Tell | None) -> Hydrated:
        """See `AgentState.hydrate`."""
        async with self._lifecycle.shared([agent], Event.HYDRATE, Event.HYDRATED) as work:
            return await self._bring(agent, "", after, tell, work)

    async def prefix(self, agent: keys.AgentRef, prefix: str, after: str | None, tell: Tell | None) -> Hydrated:
        """Some keys do not make an agent active: nothing is noted."""
        return await self._bring(agent, prefix, after, tell, None)

    async def _bring(
        self, agent: keys.AgentRef, prefix: str, after: str | None, tell: Tell | None, work: Work | None
    ) -> Hydrated:
        came = Hydrated(0, 0)
        async with aclosing(self._hydrator.pages(agent, prefix, after)) as pages:
            async for progress in pages:
                came = Hydrated(progress.keys, progress.bytes)
                if work is not None:
                    work.details.update(keys=progress.keys, bytes=progress.bytes, after=progress.after)
                if tell is not None:
                    tell(progress)
        if work is not None:
            work.details.pop("after", None)  # only who was cut off has a place to go on from
        return came

    async def many(
        self, agents: Sequence[keys.AgentRef], at_once: int, tell: Callable[[str, Hydrated], object] | None
    ) -> dict[str, Hydrated]:
        """See `Store.warm_up`."""
        done: dict[str, Hydrated] = {}
        failed: dict[str, BaseException] = {}
        for start in range(0, len(agents), limits.LIFE_PAGE_AGENTS):
            part = agents[start : start + limits.LIFE_PAGE_AGENTS]
            async with self._lifecycle.shared(part, Event.HYDRATE, Event.HYDRATED):
                waiting = iter(part)

                async def work(queue: Iterator[keys.AgentRef] = waiting) -> None:
                    for agent in queue:
                        try:
                            done[agent.text] = came = await self._bring(agent, "", None, None, None)
                        except CenoteError as error:
                            failed[agent.text] = error
                            continue
                        if tell is not None:
                            tell(agent.text, came)

                async with asyncio.TaskGroup() as group:
                    for _ in range(at_once):
                        group.create_task(work())
        if failed:
            raise PartialError(f"{len(failed)} of {len(agents)} agents were not hydrated", done=done, failed=failed)
        return done
