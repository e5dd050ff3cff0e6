"""Several real processes that send messages to one store, forked from one interpreter.

Each says on stdout that it is open; when the standard input ends they begin. Most messages go many at a time, the
others one by one, with others of their process beside them.
"""

import asyncio
import json
import os
import sys
from typing import Any

import cenote
from cenote.opening import open_machines

MANY, ALONE = 475, 25  # of each round
RECIPIENTS = 4
assert open_machines  # cenote imports its machines when a store is opened: here once, before the forks


def letter(writer: int, number: int) -> Any:
    return {
        "body": {"writer": writer, "number": number, "text": f"what {writer} found at {number}"},
        "sender": f"writer-{writer}",
        "to": f"reader-{number % RECIPIENTS}",
        "conversation": f"talk-{number % 100}",
    }


async def work(given: dict[str, Any], writer: int) -> None:
    loop, begin = asyncio.get_running_loop(), asyncio.Event()
    async with cenote.open(**given["settings"]) as store:
        os.write(1, b"open\n")
        loop.add_reader(0, begin.set)
        await begin.wait()
        loop.remove_reader(0)
        for start in range(0, given["times"], MANY + ALONE):
            await store.messages.send_many([letter(writer, start + n) for n in range(MANY)])
            await asyncio.gather(
                *(store.messages.send(**letter(writer, start + MANY + n)) for n in range(ALONE)),
            )


def main() -> None:
    given = json.loads(sys.argv[1])
    children = []
    for writer in range(given["count"]):
        child = os.fork()
        if child == 0:
            asyncio.run(work(given, writer))
            os._exit(0)
        children.append(child)
    ends = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(sum(one != 0 for one in ends))


if __name__ == "__main__":
    main()
