"""A process that repairs a store, until something kills it."""

import asyncio
import json
import sys
from typing import Any

import cenote
from cenote import limits


async def main(settings: dict[str, Any]) -> None:
    """Compare everything, and mend what differs; go on with what was left a moment ago."""
    limits.REPAIR_SILENT_S = 0.2  # type: ignore[misc]  # less than starting takes
    async with cenote.open(**settings, flush__enabled=False) as store:
        await store.repair()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
