"""A process of the test of cuts: moves amounts between keys in atomic batches and writes plain ones; or flushes."""

import asyncio
import json
import random
import sys
from itertools import count
from typing import Any

import cenote

KEYS = [f"k{n}" for n in range(20)]
EACH = 1_000
AGENT = "bank"


async def move(agent: cenote.AgentState, dice: random.Random) -> None:
    """From one key to another, unless others were faster."""
    one, two = dice.sample(KEYS, 2)
    held = [await agent.entry(one), await agent.entry(two)]
    amount = dice.randrange(1, 50)
    moved = {one: held[0].value - amount, two: held[1].value + amount}
    await agent.put_many(moved, atomic=True, if_version={one: held[0], two: held[1]})


async def work(role: str, settings: dict[str, Any]) -> None:
    dice = random.Random(role)
    async with cenote.open(**settings, flush__enabled=role == "flusher", flush__drain_ms=0) as store:
        agent = store.agent(AGENT)
        print("ready", flush=True)
        for n in count():
            if role == "flusher":
                await asyncio.sleep(1)
                continue
            try:
                await move(agent, dice)
                await asyncio.sleep(0.01)
                await agent.put(f"plain{dice.randrange(500)}", f"{role}.{n}")
            except (cenote.ConflictError, cenote.UnavailableError, cenote.OutcomeUnknownError):
                pass  # all or nothing of it happened: the sum is as it was


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], json.loads(sys.argv[2])))
