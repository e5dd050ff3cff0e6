"""Many real processes on one store, one agent each, forked from one interpreter so that 200 of them fit a machine.

Each says on stdout that it is open; when the standard input ends they write, each ack noted before the next write; then
they leave. With `freeze` the process stops itself when it has taken entries in hand.
"""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import cenote
from cenote import points
from cenote.opening import open_machines

KEYS = 20
assert open_machines  # cenote imports its machines when a store is opened: here once, before the forks


def acked_by(directory: str, number: int) -> Path:
    """Where a process notes what was acknowledged: one number a line."""
    return Path(directory) / f"{number}.acked"


async def work(given: dict[str, Any], number: int) -> None:
    loop, begin = asyncio.get_running_loop(), asyncio.Event()
    if given.get("freeze"):
        points.hook, points.armed = freeze, True
    async with cenote.open(**given["settings"]) as store:
        os.write(1, b"open\n")
        loop.add_reader(0, begin.set)
        await begin.wait()
        loop.remove_reader(0)
        agent, journal = (
            store.agent(f"many-{number}"),
            os.open(acked_by(given["directory"], number), os.O_WRONLY | os.O_CREAT),
        )
        started, written = time.monotonic() + number % 20 / 400, 0
        while time.monotonic() - started < given["seconds"]:
            await asyncio.sleep(started + written / given["rate"] - time.monotonic())
            try:
                await agent.put(f"k{written % KEYS}", written)
                os.write(journal, b"%d\n" % written)
            except (cenote.UnavailableError, cenote.OutcomeUnknownError, cenote.BackpressureError):
                pass  # not acknowledged
            written += 1


async def freeze(point: str) -> None:
    if point == "flush.taken":
        os.kill(os.getpid(), signal.SIGSTOP)


def main() -> None:
    given = json.loads(sys.argv[1])
    children = []
    for number in range(given["count"]):
        child = os.fork()
        if child == 0:
            asyncio.run(work(given, number))
            os._exit(0)
        children.append(child)
        time.sleep(given["apart_s"])
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
