"""A process that puts an agent aside, and is killed on the way."""

import asyncio
import json
import sys

import cenote


async def main() -> None:
    async with cenote.open(**json.loads(sys.argv[1])) as store:
        await store.agent("a").sleep(30)


asyncio.run(main())
