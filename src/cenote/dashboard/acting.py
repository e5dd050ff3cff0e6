"""What the dashboard may do, where it is started with leave to: each action, and the page that shows the outcome."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from starlette.exceptions import HTTPException
from starlette.requests import Request

from cenote.dashboard.rendering import encoded
from cenote.errors import NotFoundError
from cenote.store import Store

log = logging.getLogger("cenote.dashboard")

_FLUSH_S: Final = 10
_WAIT_S: Final = 5  # for what may take long; then it goes on by itself, and the page tells how far it is
_ID_MAX: Final = 2**63 - 1
_NONE: Final = "there is nothing here"

Given = Mapping[str, str]


class Actions:
    """By name. Each returns the path of the page to go to, without the root."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._going_on: set[asyncio.Future[Any]] = set()
        self._by_name: dict[str, Callable[[Given], Awaitable[str]]] = {
            "flush": self._flush, "hydrate": self._hydrate, "checkpoint": self._checkpoint, "fork": self._fork,
            "repair": self._repair, "retry-letter": self._retry_letter, "discard-letter": self._discard_letter,
            "cancel-task": self._cancel_task, "replay-task": self._replay_task,
        }  # fmt: skip

    async def do(self, request: Request, given: Given) -> str:
        """Do what the address names with what the form gives."""
        action = self._by_name.get(request.path_params["what"])
        if action is None:
            raise HTTPException(404)
        return await action(given)

    async def _flush(self, given: Given) -> str:
        agent = self._store.agent(given.get("agent", ""))
        await agent.flush(_FLUSH_S)
        return _of(agent.name)

    async def _hydrate(self, given: Given) -> str:
        agent = self._store.agent(given.get("agent", ""))
        await self._begun(agent.hydrate())
        return _of(agent.name)

    async def _checkpoint(self, given: Given) -> str:
        agent = self._store.agent(given.get("agent", ""))
        await agent.checkpoint(given.get("label") or "from the dashboard")
        return _of(agent.name)

    async def _fork(self, given: Given) -> str:
        agent = self._store.agent(given.get("agent", ""))
        return _of((await agent.fork(given.get("new_agent", ""), given.get("checkpoint", ""))).name)

    async def _repair(self, given: Given) -> str:
        await self._begun(self._store.repair())
        return "/repairs"

    async def _begun(self, work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(work)
        await asyncio.wait({task}, timeout=_WAIT_S)
        if task.done():
            task.result()
        else:
            self._going_on.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._going_on.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("what was begun at the dashboard has failed: %s", error)

    async def _retry_letter(self, given: Given) -> str:
        await self._store.dead_letters.retry(_letter(given))
        return "/dead-letters"

    async def _discard_letter(self, given: Given) -> str:
        await self._store.dead_letters.discard(_letter(given))
        return "/dead-letters"

    async def _cancel_task(self, given: Given) -> str:
        await self._store.tasks.cancel(_uuid(given.get("task", "")))
        return _tasks(given)

    async def _replay_task(self, given: Given) -> str:
        await self._store.tasks.replay(_uuid(given.get("task", "")))
        return _tasks(given)


def _of(agent: str) -> str:
    return f"/agent?name={encoded(agent)}"


def _tasks(given: Given) -> str:
    status = given.get("status", "")
    return "/tasks?" + urlencode({"status": status}) if status else "/tasks"


def _letter(given: Given) -> int:
    text = given.get("letter", "")
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _ID_MAX):
        raise NotFoundError(_NONE)
    return int(text)


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise NotFoundError(_NONE) from None
