"""Processes written as straight programs: `answer = yield (operation, arguments)`.

A program is a generator, so it reads like the code that it models. A generator cannot be stored in a world; what is
stored is which program a process is in and the answers it has had. Its next operation follows from these alone, and is
found by running the program over them once (and remembered). A program that ends makes way for the next one of its
process; one that returns AGAIN begins anew and forgets its answers.
"""

from collections.abc import Generator
from typing import Any, NamedTuple

Operation = tuple[Any, ...]
Program = Generator[Operation, Any, str | None]
AGAIN = "again"
DEAD = (-1, ())
"""The place of a process that was killed for good."""
Place = tuple[int, tuple[Any, ...]]
"""Which of its programs a process is in, and the answers that it has had there."""


class Process(NamedTuple):
    """Programs one after the other, each (name, arguments); machines loop, clients come to an end."""

    name: str
    programs: tuple[tuple[Any, ...], ...]
    loops: bool = False


class Runner:
    """Finds the next operation of each process; programs are methods of `source`."""

    def __init__(self, source: object, processes: tuple[Process, ...]) -> None:
        self._source = source
        self.processes = processes
        self._known: dict[tuple[int, Place], tuple[Place, Operation | None]] = {}

    def at(self, number: int, place: Place) -> tuple[Place, Operation | None]:
        """The place itself, or the beginning that follows its end; and the operation there, None at the very end."""
        found = self._known.get((number, place))
        if found is None:
            found = self._known[number, place] = self._run(number, place)
        return found

    def _run(self, number: int, place: Place) -> tuple[Place, Operation | None]:
        process = self.processes[number]
        at, answers = place
        if at < 0 or at >= len(process.programs):
            return place, None
        name, *arguments = process.programs[at]
        program: Program = getattr(self._source, name)(*arguments)
        try:
            operation = next(program)
            for answer in answers:
                operation = program.send(answer)
        except StopIteration as end:
            following = at if end.value == AGAIN else at + 1
            if process.loops and following == len(process.programs):
                following = 0
            return self.at(number, (following, ()))
        return place, operation
