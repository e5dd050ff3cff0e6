"""A process that works on what is kept of an agent, until something kills it."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import cenote
from cenote import limits
from cenote.engine.expiry import Expiry


async def main(settings: dict[str, Any], work: str, given: str, lines: list[bytes]) -> None:
    """Do this work on the agent "a"; a base is made of the first delta that stands on another one."""
    limits.CHECKPOINT_DELTAS_MAX = 1  # type: ignore[misc]  # a constant: 32 checkpoints would make the test slow
    limits.POLICY_CLAIM_S = 1  # type: ignore[misc]  # a minute would make it slow, too
    async with cenote.open(**settings, flush__enabled=work == "policy") as store:
        agent = store.agent("a")
        if work == "checkpoint":
            await agent.checkpoint()
        elif work == "remove":
            await agent.delete_checkpoint(given)
        elif work == "import":
            await store.import_agent(lines)
        elif work == "policy":
            await agent.put("k", 1)
            await asyncio.sleep(30)
        elif work == "expire":
            await Expiry(store._core, store._machines.lifecycle).tend()


if __name__ == "__main__":
    file = Path(sys.argv[3]).read_bytes() if sys.argv[2] == "import" else b""
    asyncio.run(main(json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], file.splitlines(keepends=True)))
