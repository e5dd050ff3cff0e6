"""Serving until a signal comes: the store is open, the flusher competes for its lease, servers are watched over."""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager

from cenote.cli.reach import opened
from cenote.config import Config
from cenote.store import Store

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """What happens, with its time, for whoever watches or reads the log later."""
    logger = logging.getLogger("cenote")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


async def until_signal(config: Config, ready: Callable[[Store], None]) -> None:
    """Open the store, call `ready`, and close it in order at SIGTERM or SIGINT, also while it is still opening.

    Raises whatever opening raises.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        opening = asyncio.create_task(stack.enter_async_context(opened(config)))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            return
        try:
            store, _ = await opening
        except BaseException:
            stopping.cancel()
            raise
        ready(store)
        await stopping
