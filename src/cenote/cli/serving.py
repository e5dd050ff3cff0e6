"""Serving until a signal comes: the store is open, the flusher competes for its lease, servers are watched over."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

from cenote.cli.reach import opened
from cenote.config import Config
from cenote.errors import SetupError
from cenote.store import Store

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@asynccontextmanager
async def dashboard(
    store: Store, *, port: int | None, actions: bool, directory: Path | None
) -> AsyncIterator[str | None]:
    """The admin port, if there is to be one; yields its address."""
    if port is None:
        yield None
        return
    try:
        from cenote.dashboard.serving import TOKEN_FILE, served
    except ImportError as error:
        raise SetupError("the admin port needs the dashboard", hint="pip install 'cenote[dashboard]'") from error
    file = None if directory is None else directory / TOKEN_FILE
    async with served(store, port=port, actions=actions, token_file=file) as address:
        yield address


async def until_signal(
    config: Config,
    ready: Callable[[Store, str | None], None],
    beside: Callable[[Store], AbstractAsyncContextManager[str | None]],
) -> None:
    """Open the store and what is served beside it, call `ready`, and close all in order at SIGTERM or SIGINT, also
    while it is still opening.

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
        ready(store, await stack.enter_async_context(beside(store)))
        await stopping
