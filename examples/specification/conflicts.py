"""3.2 and 6.2 Conflict resolution: each of the strategies, as a pure function and under a key."""

import asyncio

import cenote
from cenote import Strategy


async def main() -> None:
    async with cenote.open() as store:
        agent = store.agent("scout-7")

        before = await agent.put("goal", "north")
        await agent.put("goal", "east")
        try:
            await agent.put("goal", "west", if_version=before)  # optimistic concurrency control
        except cenote.ConflictError as error:
            print(error.code)  # VERSION_CONFLICT

        await agent.put("seen", cenote.ORSet({"tunnel-a"}))  # CRDT_MERGE: chosen by the value's own type
        await agent.put("seen", cenote.ORSet({"tunnel-b"}))
        print(sorted(await agent.get("seen")))  # ['tunnel-a', 'tunnel-b']

        entry = await agent.merge("goal", "south", strategy=Strategy.LAST_WRITE_WINS)
        print(entry.value)  # south


asyncio.run(main())
