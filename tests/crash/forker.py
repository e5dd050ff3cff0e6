"""A process that forks an agent and reads the fork, until something kills it."""

import asyncio
import json
import sys
from typing import Any

import cenote


async def main(settings: dict[str, Any], checkpoint: str) -> None:
    """Fork "source" into "fork", and list it."""
    async with cenote.open(**settings, flush__enabled=False) as store:
        fork = await store.agent("source").fork("fork", checkpoint)
        async for _ in fork.keys():
            pass


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(main(given["settings"], given["checkpoint"]))
