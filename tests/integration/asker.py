"""A process that asks the cache: settings, how many at once, how long its loader takes."""

import asyncio
import json
import sys

import cenote


async def main(settings: dict[str, object], count: int, seconds: float) -> None:
    async with cenote.open(**settings) as store:  # type: ignore[arg-type]  # as a test gave them
        loads = 0

        async def load() -> object:
            nonlocal loads
            loads += 1
            await asyncio.sleep(seconds)
            return {"answer": 42}

        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        found = await asyncio.gather(*(store.cache.get_or_load("question", load) for _ in range(count)))
        print(json.dumps({"loads": loads, "right": found.count({"answer": 42})}), flush=True)


asyncio.run(main(json.loads(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
