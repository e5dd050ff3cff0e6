"""A worker process of the swarm: hosts several agents at a time, one for each module, until no module is left.

Nobody hands out the work. A worker claims a module by a compare-and-set on the agent's own state, writes down each
finding, and after each how far it has come. A worker that replaces a killed one takes over its claims and goes on after
the last acknowledged step.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

import cenote
from cenote.demo import careful, shared, survey
from cenote.demo.journal import Journal
from cenote.demo.pool import open_store

AGENTS_AT_A_TIME = 4


class Orders(msgspec.Struct, frozen=True):
    """What the conductor tells a worker when it starts."""

    name: str
    replaces: str | None
    run: str
    modules: int
    journal: str
    data_dir: str


class Worker:
    """One process of the swarm."""

    def __init__(self, orders: Orders, store: cenote.Store) -> None:
        self._orders = orders
        self._store = store
        self._journal = Journal(Path(orders.journal))
        self._me = f"{orders.run}/{orders.name}"
        self._predecessor = f"{orders.run}/{orders.replaces}"

    async def work(self) -> None:
        """Go through all modules once, some at a time."""
        everything = iter(survey.modules(self._orders.modules))
        async with asyncio.TaskGroup() as group:
            for _ in range(AGENTS_AT_A_TIME):
                group.create_task(self._host(everything))
        stats = await careful.patiently(self._store.stats)
        self._journal.event("left", self._orders.name, stats.hydrated)

    async def _host(self, modules: Iterator[survey.Module]) -> None:
        for module in modules:
            agent = self._store.agent(module.name)
            if await self._claim(agent):
                await self._survey(agent, module)

    async def _claim(self, agent: cenote.AgentState) -> bool:
        """Make the module ours, if it is nobody's, or was left unfinished by the worker that we replace."""
        entry = await careful.look(agent, "claim")
        holder = entry.value if entry and entry.value.startswith(self._orders.run) else None
        if holder is not None and holder != self._predecessor:
            return False
        if holder is not None and await self._finished(agent):
            self._journal.event("finished", agent.name, 0)  # it may have been killed just before it could say so
            return False
        try:
            await careful.put(self._journal, agent, "claim", self._me, if_version=entry or 0)
        except cenote.ConflictError:
            return False  # another worker was faster
        return True

    async def _survey(self, agent: cenote.AgentState, module: survey.Module) -> None:
        """Write down every step that is not done yet, and after each how far we are."""
        steps = survey.steps(module.path.read_bytes())
        before = await self._progress(agent)
        done = 0 if before is None else before["done"]
        self._journal.event("begun" if before is None else "resumed", agent.name, done)
        for number, step in enumerate(steps[done:], done + 1):
            await careful.put(self._journal, agent, step.key, step.value)
            if number == len(steps):
                await self._tell_all(module, steps)
            progress = {"run": self._orders.run, "done": number, "of": len(steps), "last": step.key}
            await careful.put(self._journal, agent, "progress", progress)
        self._journal.event("finished", agent.name, len(steps))

    async def _tell_all(self, module: survey.Module, steps: list[survey.Step]) -> None:
        """Add to what all workers write together. Before the last progress: a module that counts as finished is in."""
        everybody = self._store.agent(shared.agent(self._orders.run))
        found, name = Counter(step.kind for step in steps), module.name
        count, add = shared.counting(found, name), shared.adding(name)
        await careful.share(self._journal, everybody, shared.FINDINGS, count, cenote.ORMap(), found)
        await careful.share(self._journal, everybody, shared.SURVEYED, add, cenote.ORSet(), [name])

    async def _finished(self, agent: cenote.AgentState) -> bool:
        progress = await self._progress(agent)
        return progress is not None and progress["done"] == progress["of"]

    async def _progress(self, agent: cenote.AgentState) -> dict[str, Any] | None:
        """How far this run has come with a module; None when it has not begun."""
        entry = await careful.look(agent, "progress")
        return entry.value if entry is not None and entry.value["run"] == self._orders.run else None


async def _main(orders: Orders) -> None:
    async with open_store(orders.data_dir, flush__enabled=False) as store:
        await Worker(orders, store).work()


if __name__ == "__main__":
    asyncio.run(_main(msgspec.json.decode(sys.argv[1], type=Orders)))
