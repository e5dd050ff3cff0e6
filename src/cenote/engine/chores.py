"""What has to be done now and then by about one process of a store: the active flusher does it beside its flushes.

A chore is bounded, may be cut off anywhere and repeated, and may run in two processes at once while the lease changes
hands. One that fails is logged and comes again; it never ends the shift (I13).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

log = logging.getLogger("cenote.engine")


class Chore(NamedTuple):
    """One of them. `every_s`: the pause between the end of a run and the next one; the first run is after it, too."""

    name: str
    every_s: float
    work: Callable[[], Awaitable[None]]


async def keep_doing(chores: list[Chore]) -> None:
    """Do each of them by its own clock, until cancelled."""
    async with asyncio.TaskGroup() as group:
        for chore in chores:
            group.create_task(_keep(chore), name=f"cenote-{chore.name}")
        await asyncio.Event().wait()  # a shift ends when one of its jobs does: this one never ends by itself


async def _keep(chore: Chore) -> None:
    while True:
        await asyncio.sleep(chore.every_s)
        try:
            await chore.work()
        except Exception as error:  # noqa: BLE001 - whatever a chore meets, flushing goes on
            log.warning("%s was cut off and comes again: %s", chore.name, error)
