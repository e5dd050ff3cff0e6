"""A cenote of the next version, in a process of its own: it reads and writes format 2 of entries, which has the same
fields, and so meets this version on real servers. What it can do is told by one JSON object on its command line.

    {"do": "write" | "flush" | "freeze" | "migrate", "settings": {…}, "keys": […], "arguments": […], "old": false}
"""

import asyncio
import json
import os
import signal
import sys
from typing import Any

import cenote
from cenote import points
from cenote.engine import core, machines
from cenote.model import entry


def become_newer() -> None:
    """Before anything is opened."""
    for module in (entry, core, machines):
        module.FORMAT = 2  # type: ignore[misc, attr-defined]  # that is the upgrade
    entry._HEADS[2] = b"Cenote: 2;"
    entry._READ.add("2")


async def write(order: dict[str, Any]) -> None:
    """Put each key, in the format that the store allows, or in format 2 whatever it allows."""
    async with cenote.open(**order["settings"], flush__enabled=False, flush__drain_ms=0) as store:
        if order.get("forced"):
            store._core.format = 2
            store._core._learn = lambda info: None  # type: ignore[method-assign]  # or the probe would put it right
        for key in order["keys"]:
            await store.agent("upgrade").put(key, f"newer {key}")
        print(json.dumps({"acked": order["keys"], "format": store._core.format}), flush=True)


async def flush(order: dict[str, Any]) -> None:
    """Flush until a line comes in."""
    async with cenote.open(**order["settings"]) as store:
        print(json.dumps({"open": True}), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await store.flush(10)
        values = {key: value async for key, value in store.agent("upgrade").items()}
        print(json.dumps({"values": values}), flush=True)


async def freeze(order: dict[str, Any]) -> None:
    """Flush, and stop with the first batch in hand until somebody sends SIGCONT; end when it is committed."""
    committed = asyncio.Event()

    async def hook(name: str) -> None:
        if name == "flush.taken":
            print(json.dumps({"frozen": True}), flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        elif name == "flush.committed":
            committed.set()

    async with cenote.open(**order["settings"]) as store:
        points.hook, points.armed = hook, True
        print(json.dumps({"open": True}), flush=True)
        async with asyncio.timeout(30):
            await committed.wait()
        assert store._core.counts.commits <= 1
        print(json.dumps({"committed": True}), flush=True)


def main() -> int:
    order = json.loads(sys.argv[1])
    if not order.get("old"):
        become_newer()
    if order["do"] == "migrate":
        from cenote.cli.run import run

        return run(["migrate", "--json", *order["arguments"]])
    asyncio.run({"write": write, "flush": flush, "freeze": freeze}[order["do"]](order))
    return 0


if __name__ == "__main__":
    sys.exit(main())
