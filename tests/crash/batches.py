"""A process that writes atomic batches, or moves amounts between keys by them, until something kills it."""

import asyncio
import json
import random
import sys
from typing import Any

import cenote

AGENT = "batches"
KEYS_MAX = 600
ACCOUNTS = [f"account{number}" for number in range(20)]


async def write(store: cenote.Store, session: str, keys: list[str]) -> None:
    """All keys, each time the same value under all of them."""
    agent, number = store.agent(AGENT), 0
    while True:
        number += 1
        try:
            await agent.put_many(dict.fromkeys(keys, f"{session}.{number}"), atomic=True)
        except (cenote.UnavailableError, cenote.OutcomeUnknownError):
            continue
        print("acked", flush=True)
        await asyncio.sleep(0.01)


async def move(store: cenote.Store, session: str) -> None:
    """An amount from one account to another, if nobody touched either meanwhile."""
    agent, dice = store.agent(AGENT), random.Random(session)
    while True:
        one, other = dice.sample(ACCOUNTS, 2)
        first, second = await agent.entry(one), await agent.entry(other)
        amount = dice.randrange(1, 10)
        try:
            await agent.put_many(
                {one: first.value - amount, other: second.value + amount},
                atomic=True, if_version={one: first, other: second},
            )  # fmt: skip
        except (cenote.ConflictError, cenote.UnavailableError, cenote.OutcomeUnknownError):
            continue
        print("acked", flush=True)


async def main(given: dict[str, Any]) -> None:
    async with cenote.open(**given["settings"]) as store:
        if given["kind"] == "flush":
            print("flushing", flush=True)
            await asyncio.Event().wait()
        elif given["kind"] == "move":
            await move(store, given["session"])
        else:
            await write(store, given["session"], [f"k{number}" for number in range(given["size"])])


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
