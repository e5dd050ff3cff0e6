"""Several real processes that change one key, each a bounded number of times, forked from one interpreter.

Each says on stdout that it is open; when the standard input ends they begin. The journal of a process has a line before
each call and one after it, so of a killed process at most its last call is unknown. A write(2) to a file stays written
when the process is killed.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cenote
from cenote.opening import open_machines

AGENT, KEY = "shared", "n"
SWARM, PACE_S = "swarm", 0.01  # store.counter(): so fast that the faults would come too late without a pace
assert open_machines  # cenote imports its machines when a store is opened: here once, before the forks


class Call(NamedTuple):
    """One `update` as its process saw it; by the clock that all processes of a machine share."""

    process: int
    began: float
    ended: float  # infinite where the process was killed meanwhile
    end: str  # "acked", "unknown" or the name of the error that says that nothing was written

    @property
    def waited_s(self) -> float:
        return self.ended - self.began


def journal_of(directory: str | Path, number: int) -> Path:
    """Where a process writes its journal."""
    return Path(directory) / f"{number}.calls"


def calls(directory: Path, count: int) -> list[Call]:
    """What the journals of so many processes say."""
    found: list[Call] = []
    for number in range(count):
        began: float | None = None
        for line in journal_of(directory, number).read_text().splitlines(keepends=True):
            kind, _, at = line.partition(" ")
            if not line.endswith("\n"):
                break  # torn by the kill
            if kind == "begin":
                began = float(at)
            else:
                assert began is not None
                found.append(Call(number, began, float(at), kind))
                began = None
        if began is not None:
            found.append(Call(number, began, float("inf"), "unknown"))
    return found


def plain(value: int) -> int:
    return value + 1


def counter(value: cenote.PNCounter) -> cenote.PNCounter:
    value.increment()
    return value


KINDS: dict[str, tuple[Callable[[Any], Any], Callable[[], Any]]] = {
    "plain": (plain, int),
    "counter": (counter, cenote.PNCounter),
}


async def work(given: dict[str, Any], number: int) -> None:
    loop, begin = asyncio.get_running_loop(), asyncio.Event()
    change, nothing = KINDS.get(given["kind"], KINDS["plain"])
    journal = os.open(journal_of(given["directory"], number), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    async with cenote.open(**given["settings"]) as store:
        os.write(1, b"open\n")
        loop.add_reader(0, begin.set)
        await begin.wait()
        loop.remove_reader(0)
        agent, counted = store.agent(AGENT), 0
        while counted < given["times"]:
            os.write(journal, b"begin %f\n" % time.monotonic())
            try:
                if given["kind"] == SWARM:
                    await asyncio.sleep(PACE_S)
                    await store.counter(KEY).add()
                elif given.get("careless"):
                    await agent.put(KEY, change(await agent.get(KEY, nothing())), replace=True)
                else:
                    await agent.update(KEY, change, default=nothing())
                end, counted = "acked", counted + 1
            except cenote.OutcomeUnknownError:
                end, counted = "unknown", counted + 1
            except (cenote.UnavailableError, cenote.ConflictError) as error:
                end = type(error).__name__
            os.write(journal, b"%s %f\n" % (end.encode(), time.monotonic()))


def main() -> None:
    given = json.loads(sys.argv[1])
    children = []
    for number in range(given["count"]):
        child = os.fork()
        if child == 0:
            asyncio.run(work(given, number))
            os._exit(0)
        children.append(child)
        os.write(1, b"%d\n" % child)
    ends = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(sum(os.WIFEXITED(one) and os.WEXITSTATUS(one) != 0 for one in ends))


if __name__ == "__main__":
    main()
