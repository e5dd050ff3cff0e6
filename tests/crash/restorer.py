"""A process that restores agents, until something kills it."""

import asyncio
import json
import sys
from typing import Any

import cenote
from cenote import limits


async def main(settings: dict[str, Any], wanted: dict[str, str], batch: int) -> None:
    """Restore these agents to these checkpoints; a batch takes so many keys."""
    limits.ATOMIC_KEYS_MAX = batch  # type: ignore[misc]  # a constant: 1,000 keys would make the test slow
    async with cenote.open(**settings) as store:
        restorer = store._machines.restorer
        await restorer.restore([(store.agent(name)._agent, one) for name, one in wanted.items()])


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(main(given["settings"], given["wanted"], given["batch"]))
