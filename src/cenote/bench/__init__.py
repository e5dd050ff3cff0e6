"""The speed table: cenote against the bare drivers, both sides in turns in one run on the same servers.

Absolute numbers say more about the machine than about the code, so nearly every row is a ratio, taken per round and
reported as the median with its range. A number without a counterpart (bytes, percentiles) stands for itself.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from rich.console import Console

from cenote.bench.flushes import beside_row, drain_row, lag_rows
from cenote.bench.ground import FULL, QUICK, Effort, Ground
from cenote.bench.hydration import hydrate_row
from cenote.bench.reads import get_rows
from cenote.bench.table import Result, as_json_text, shown, summary
from cenote.bench.volume import memory_rows, wal_rows
from cenote.bench.writes import put_rows

Group = Callable[[Ground, Effort], AsyncIterator[Result]]
GROUPS: tuple[Group, ...] = (
    put_rows, get_rows, drain_row, beside_row, lag_rows, hydrate_row, wal_rows, memory_rows,
)  # fmt: skip


def run(*, quick: bool, as_json: bool) -> int:
    """Measure every row and print the table; 0 when it could be measured, whatever the verdicts say.

    Raises:
        ServerStartError: the embedded servers cannot be started.
    """
    results, took_s = asyncio.run(_measured(QUICK if quick else FULL))
    if as_json:
        Console().print_json(as_json_text(results, quick=quick, took_s=took_s))
    else:
        Console().print(shown(results, quick=quick, took_s=took_s))
        Console().print(summary(results))
    return 0


async def _measured(effort: Effort) -> tuple[list[Result], float]:
    progress = Console(stderr=True)
    results: list[Result] = []
    began = time.monotonic()
    async with Ground() as ground:
        progress.print(f"servers: {ground.description}", highlight=False)
        for group in GROUPS:
            async for result in group(ground, effort):
                results.append(result)
                took_s = time.monotonic() - began
                progress.print(f"{took_s:5.0f} s  {result.row.what}: {result.text}", highlight=False, soft_wrap=True)
    return results, time.monotonic() - began
