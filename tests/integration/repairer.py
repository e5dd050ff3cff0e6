"""A process that repairs a store, until something kills it."""

import asyncio
import json
import sys
from typing import Any

import cenote


async def main(settings: dict[str, Any]) -> None:
    """Compare everything, and mend what differs."""
    async with cenote.open(**settings, flush__enabled=False) as store:
        await store.repair()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
