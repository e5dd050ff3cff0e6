"""A process that works on a store and writes down what it does, until something kills it.

Writers, readers and hydrations run side by side on a few keys; with `state.ttl_s=2` the evictor has work, too. The
journal gets each intent before anything is sent, and each acknowledgement before the next line runs.
"""

import asyncio
import json
import random
import sys
from itertools import count
from pathlib import Path
from typing import Any

import cenote
from cenote.engine import hand

sys.path.insert(0, str(Path(__file__).parents[1]))

from history import Journal

HOT = [f"hot{number}" for number in range(6)]
COLD = [f"cold{number}" for number in range(40)]
AGENT = "survivor"
NEWBORN = "newborn"


def owner(key: str) -> str:
    """Whose key it is: one hot key belongs to an agent that nobody has heard of before the child."""
    return NEWBORN if key == HOT[-1] else AGENT


class Worker:
    """One task's operations, journaled."""

    def __init__(self, store: cenote.Store, journal: Journal, name: str) -> None:
        self._store = store
        self._journal = journal
        self._name = name
        self._dice = random.Random(name)
        self._numbers = 0

    async def write(self, key: str) -> None:
        """Put, delete, update or put under a condition; a refusal that proves that nothing happened is noted."""
        self._numbers += 1
        kind = self._dice.random()
        value = None if kind < 0.15 else f"{self._name}.{self._numbers}" + "x" * self._dice.randrange(300)
        agent = self._store.agent(owner(key))
        intent = self._journal.begin("write", key, value)
        try:
            if value is None:
                await agent.delete(key)
            elif kind < 0.3:
                await agent.update(key, lambda _: value, default=None)
            elif kind < 0.4:
                entry = await agent.entry(key)
                await agent.put(key, value, if_version=entry)
            else:
                await agent.put(key, value)
        except cenote.OutcomeUnknownError:
            return
        except (cenote.UnavailableError, cenote.ConflictError, cenote.NotFoundError):
            self._journal.refused(intent)
            return
        self._journal.end(intent)

    async def read(self, key: str) -> None:
        """Get, and note what it returned."""
        intent = self._journal.begin("read", key)
        try:
            value = await self._store.agent(owner(key)).get(key)
        except cenote.UnavailableError:
            self._journal.refused(intent)
            return
        if self._store._core.coherence:  # else it may be any age, and is marked as stale
            self._journal.end(intent, value)
        else:
            self._journal.refused(intent)

    async def write_together(self, keys: list[str]) -> None:
        """An atomic batch, half of the time under a condition for one of its keys."""
        self._numbers += 1
        values = {key: f"{self._name}.{self._numbers}.{key}" for key in keys}
        agent = self._store.agent(AGENT)
        intents = [self._journal.begin("write", key, value) for key, value in values.items()]
        try:
            expected = {keys[0]: await agent.entry(keys[0])} if self._dice.random() < 0.5 else None
            await agent.put_many(values, atomic=True, if_version=expected)
        except cenote.OutcomeUnknownError:
            return
        except (cenote.UnavailableError, cenote.ConflictError, cenote.NotFoundError):
            for intent in intents:
                self._journal.refused(intent)
            return
        for intent in intents:
            self._journal.end(intent)

    async def write_for_ever(self) -> None:
        while True:
            if self._dice.random() < 0.1:
                await self.write_together(self._dice.sample(HOT[:-1], 3))
            else:
                await self.write(self._dice.choice(HOT))
            await asyncio.sleep(self._dice.random() * 0.004)

    async def read_for_ever(self) -> None:
        while True:
            await self.read(self._dice.choice(HOT + COLD))
            await asyncio.sleep(0.002)

    async def hydrate_for_ever(self) -> None:
        """One key by one, by a read or by a conditional write; then the whole agent at once; again. Each time another
        key is deleted for good, which the collector finds."""
        for cycle in count():
            for number, key in enumerate(COLD):
                await (self.write(key) if number % 4 == 3 else self.read(key))
                await asyncio.sleep(0.03)
            try:
                await self._store.agent(AGENT).delete(f"gone{cycle}")
                await self._store.agent(AGENT).hydrate()
            except (cenote.UnavailableError, cenote.OutcomeUnknownError):
                continue


def ack_before_commit() -> None:
    """A mutation for the tests of the tests: entries are settled when they are taken in hand."""
    plain = hand.Hand._flush

    async def flush(self: hand.Hand, taken: list[Any]) -> None:
        hand.ack_many(self._core.link, [one.reply for one in taken], generation=self._generation)
        await self._core.stream.info()  # one round trip: the acks have arrived
        await plain(self, taken)

    hand.Hand._flush = flush  # type: ignore[method-assign]  # that is what a mutation is


async def main(settings: dict[str, Any], journal: Path, session: str, seconds: float) -> None:
    async with cenote.open(**settings) as store:
        workers = [Worker(store, Journal(journal, f"{session}.{n}"), f"{session}.{n}") for n in range(5)]
        for key in HOT:
            await workers[0].write(key)  # so that no point comes before the first acknowledgement
        print("working", flush=True)
        jobs = [
            *(one.write_for_ever() for one in workers[:3]),
            workers[3].read_for_ever(),
            workers[4].hydrate_for_ever(),
        ]
        try:
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(job)
        except TimeoutError:
            return


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    if given.pop("mutation", None):
        ack_before_commit()
    asyncio.run(main(given["settings"], Path(given["journal"]), given["session"], given["seconds"]))
