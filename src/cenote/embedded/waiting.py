"""Waiting for work that must not be torn: a cancellation is passed on after the work has ended."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


async def settle(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end even when the caller is cancelled, then be cancelled."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: the cancellation goes first
        raise


async def blocking(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `function` in a thread; the locks around this call are not freed under it. At the exit of the interpreter,
    where `atexit` closes what somebody left open, there are no such threads any more: then it runs here."""
    try:
        return await settle(asyncio.to_thread(function, *args, **kwargs))
    except RuntimeError as error:
        if "cannot schedule new futures" not in str(error):
            raise
        return function(*args, **kwargs)
