"""Parts of a page: each has a time of its own, so that what is down is told of, by name, and hides nothing else."""

import asyncio
from collections.abc import Awaitable
from typing import Any, Final

from cenote.errors import CenoteError, NotFoundError, RejectedError

NATS: Final = "NATS"
POSTGRESQL: Final = "PostgreSQL"
PART_S: Final = 2.0
LOOK_S: Final = 4.0  # for what waits three seconds for a server by itself, and then says which one is away

_left: set[asyncio.Future[Any]] = set()


async def part(asked: Awaitable[Any], server: str, within_s: float = PART_S) -> dict[str, Any]:
    """The value, or why there is none: `{"value": …, "error": None | text}`; the text names the server.

    What does not answer in time is cancelled and left to itself: ending a statement on a server that hangs takes longer
    than whoever looks should wait.

    Raises:
        NotFoundError, RejectedError: the question itself is at fault.
    """
    task = asyncio.ensure_future(asked)
    try:
        await asyncio.wait({task}, timeout=within_s)
    finally:
        if not task.done():
            task.cancel()
            _left.add(task)
            task.add_done_callback(_forget)
    if not task.done():
        return {"value": None, "error": f"{server}: no answer within {within_s:g} s"}
    try:
        return {"value": task.result(), "error": None}
    except (NotFoundError, RejectedError):
        raise
    except CenoteError as error:
        text = str(error)
        return {"value": None, "error": text if server.lower() in text.lower() else f"{server}: {text}"}


def _forget(task: asyncio.Future[Any]) -> None:
    _left.discard(task)
    if not task.cancelled():
        task.exception()  # nobody waits for it any more


def first(*errors: str | None) -> str | None:
    """What went wrong, each thing once; None when nothing did."""
    told = list(dict.fromkeys(error for error in errors if error))
    return " · ".join(told) or None
