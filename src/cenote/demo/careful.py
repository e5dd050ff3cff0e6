"""Writing as a program should that must know what happened to each of its writes.

Three answers are possible. It happened: go on. It did not (`UnavailableError`, `BackpressureError`): wait, write again.
Nobody knows (`OutcomeUnknownError`): read, then decide.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import cenote
from cenote.demo.journal import Journal, Parts

T = TypeVar("T")
PAUSE_S = 0.1


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until the store can answer; for reads, and for waits that may be repeated."""
    while True:
        try:
            return await ask()
        except (cenote.UnavailableError, cenote.TransactionError, cenote.OutcomeUnknownError):
            await asyncio.sleep(PAUSE_S)


async def look(agent: cenote.AgentState, key: str) -> cenote.Entry | None:
    """The entry of a key; None when there is none."""
    try:
        return await patiently(lambda: agent.entry(key))
    except cenote.NotFoundError:
        return None


async def put(journal: Journal, agent: cenote.AgentState, key: str, value: Any) -> None:
    """Put a value and return when it is certain that it was written."""
    intent = journal.intent(agent.name, key, value)
    while True:
        try:
            version = (await agent.put(key, value)).version
            break
        except (cenote.UnavailableError, cenote.BackpressureError):
            await asyncio.sleep(PAUSE_S)
        except cenote.OutcomeUnknownError:
            entry = await look(agent, key)
            if entry is not None and entry.value == value:
                version = entry.version
                break
    journal.acked(intent, version)


async def share(
    journal: Journal,
    agent: cenote.AgentState,
    key: str,
    change: Callable[[Any], None],
    empty: Any,
    parts: Parts,
) -> None:
    """Change a value that others change, too, which adds `parts` to it.

    When nobody knows whether it happened, elements are added again, which does no harm; what was perhaps counted is not
    counted again.
    """
    intent = journal.share(agent.name, key, parts)
    while True:
        try:
            await agent.update(key, change, default=empty)
            break
        except (cenote.UnavailableError, cenote.BackpressureError, cenote.ConflictError):
            await asyncio.sleep(PAUSE_S)
        except cenote.OutcomeUnknownError:
            if isinstance(parts, dict):
                return
    journal.shared(intent)
