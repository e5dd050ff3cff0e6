"""4.3 L1, then KV, then whoever knows: no copy outlives its time, and one answer is made for all who ask."""

import asyncio
from datetime import timedelta

import cenote


async def main() -> None:
    async with cenote.open() as store:
        asked = 0

        async def survey() -> dict[str, int]:
            nonlocal asked
            asked += 1
            await asyncio.sleep(0.05)
            return {"depth_m": 40}

        found = await asyncio.gather(*(store.cache.get_or_load("sala", survey) for _ in range(200)))
        print(asked, found[199])  # 1 {'depth_m': 40}

        short = timedelta(seconds=0.2)
        await store.cache.put("weather", "dry", ttl=short)
        print(await store.cache.get("weather"))  # dry
        await asyncio.sleep(0.3)
        print(await store.cache.get("weather"))  # None

        store.cache.evict_expired()
        print(store.cache.counts.loads)  # 1


asyncio.run(main())
