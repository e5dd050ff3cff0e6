"""How a side is driven and timed: one at a time, many in flight, for a while; and both sides in turns."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator

Work = Callable[[int], Awaitable[object]]
Side = Callable[[], Awaitable[float]]

IN_FLIGHT = 64


async def in_turns(rounds: int, ours: Side, theirs: Side) -> list[tuple[float, float]]:
    """A B A B …: what both sides measured in each round, after one round that does not count."""
    pairs = [(await ours(), await theirs()) for _ in range(rounds + 1)]
    return pairs[1:]


def ratios(pairs: list[tuple[float, float]]) -> list[float]:
    """Ours over theirs, round by round: what loads the machine for seconds loads both sides of a round."""
    return [ours / theirs for ours, theirs in pairs]


def medians(pairs: list[tuple[float, float]], scale: float, unit: str) -> str:
    """Both sides in absolute numbers, for the note of a row."""
    ours, theirs = (statistics.median(side) * scale for side in zip(*pairs, strict=True))
    return f"{ours:,.0f} against {theirs:,.0f} {unit}"


async def median_s(seconds: float, work: Work) -> float:
    """p50 of the duration of one call, one after the other for so long."""
    took: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        await work(len(took))
        took.append(time.perf_counter() - began)
    return statistics.median(took)


async def rate_for(seconds: float, work: Work, in_flight: int = IN_FLIGHT) -> float:
    """Calls per second over so long, with so many in flight."""
    began = time.perf_counter()
    done = 0

    def numbers() -> Iterator[int]:
        nonlocal done
        while time.perf_counter() - began < seconds:
            yield done
            done += 1

    await drive(numbers(), work, in_flight)
    return done / (time.perf_counter() - began)


async def drive(numbers: Iterator[int], work: Work, in_flight: int = IN_FLIGHT) -> None:
    """Call `work` with each number, so many calls in flight."""

    async def worker() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(worker() for _ in range(in_flight)))
