"""The dashboard as an ASGI application: pages, their JSON, the live overview, and a few actions."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from cenote.dashboard import probes, rendering
from cenote.dashboard.acting import Actions
from cenote.dashboard.agents import AgentPages
from cenote.dashboard.guard import Guard, form_secret, from_here, refusal, same
from cenote.dashboard.live import Live, Ticks
from cenote.dashboard.pages import PAGE, Pages
from cenote.dashboard.records import Records
from cenote.dashboard.swarm import Swarm
from cenote.errors import (
    AlreadyExistsError,
    CenoteError,
    CodecError,
    ConflictError,
    LifecycleError,
    NotFoundError,
    RejectedError,
)
from cenote.store import Store

_STATIC: Final = Path(__file__).parent / "static"
_LIMIT_MAX: Final = 100
_FORM_BYTES_MAX: Final = 65_536
_NOT_FOUND: Final = "there is nothing here"
_NAMES: Final = ("/agent", "/key")  # what they are asked for is a name: one that cannot be is not there

Document = Callable[[Request], Awaitable[dict[str, Any]]]


def app(
    store: Store,
    *,
    actions: bool = False,
    token: str | None = None,
    hosts: Iterable[str] | None = None,
    stopping: asyncio.Event | None = None,
) -> Starlette:
    """The dashboard of an open store, to be served alone or mounted in an application of yours.

    Args:
        store: must stay open meanwhile.
        actions: whether it may do more than look: flush, hydrate, checkpoint, fork, repair, decide about dead letters,
            cancel and replay tasks.
        token: what callers must present; None: nothing, for whoever mounts it behind an authentication of his own.
        hosts: names under which it may be asked, without ports; None: any.
        stopping: set when the server stops, so that live pages end.
    """
    board = _Board(store, actions=actions, token=token, stopping=stopping or asyncio.Event())
    return Starlette(
        routes=[
            *board.routes(), *probes.routes(store),
            Mount("/static", StaticFiles(directory=_STATIC), name="static"),
        ],
        middleware=[Middleware(Guard, token=token, hosts=hosts)],
        exception_handlers={CenoteError: board.told, HTTPException: board.told, Exception: board.told},
    )  # fmt: skip


class _Board:
    def __init__(self, store: Store, *, actions: bool, token: str | None, stopping: asyncio.Event) -> None:
        self._store = store
        self._pages = Pages(store)
        self._ticks = Ticks(self._pages.overview)
        self._live = Live(self._ticks, stopping)
        self._actions = Actions(store) if actions else None
        self._token = token
        self._templates = rendering.environment()

    @property
    def _secret(self) -> str:
        """What a form of ours carries: the same in all processes of the store, and known to nobody else."""
        return form_secret(self._token, self._store._machines.core.epochs.store_id)

    def routes(self) -> list[Route]:
        pages, agents, swarm, records = self._pages, AgentPages(self._store), Swarm(self._store), Records(self._store)

        def ask(request: Request, *names: str) -> list[str]:
            given = rendering.asked(request)
            return [given.get(name, "") for name in names]

        found: dict[str, tuple[str, Document]] = {
            "/": ("overview", lambda _: self._ticks.now()),
            "/agents": (
                "agents", lambda r: swarm.agents(*ask(r, "prefix", "phase", "sort", "after"), limit=_limit(r))
            ),
            "/agent": ("agent", lambda r: agents.agent(*ask(r, "name", "prefix", "after"), limit=_limit(r))),
            "/key": ("key", lambda r: agents.key(*ask(r, "agent", "key"))),
            "/conflicts": ("conflicts", lambda _: pages.conflicts()),
            "/tasks": ("tasks", lambda r: records.tasks(*ask(r, "status", "cursor"))),
            "/messages": ("messages", lambda r: records.messages(*ask(r, "conversation", "to", "before", "after"))),
            "/knowledge": ("knowledge", lambda r: records.knowledge(*ask(r, "namespace", "query", "cursor"))),
            "/dead-letters": ("dead_letters", lambda r: pages.dead_letters(*ask(r, "after"))),
            "/repairs": ("repairs", lambda _: pages.repairs()),
            "/system": ("system", lambda _: pages.system()),
        }  # fmt: skip
        made = [Route(path, self._page(*of), name=of[0]) for path, of in found.items()]
        made.append(Route("/live", self._stream, name="live"))
        return [*made, Route("/do/{what}", self._do, methods=["POST"], name="do")]

    def _page(self, name: str, document: Document) -> Callable[[Request], Awaitable[Response]]:
        async def show(request: Request) -> Response:
            found = await document(request)
            if rendering.wants_json(request):
                return rendering.as_json(found)
            return rendering.html(self._html(request, name, found))

        return show

    def _html(self, request: Request, name: str, found: dict[str, Any]) -> str:
        return self._templates.get_template(f"{name}.html").render(
            base=request.scope.get("root_path", ""), here=name, page=found, actions=self._actions is not None,
            secret=self._secret if self._actions else "", namespace=self._store.config.namespace,
        )  # fmt: skip

    async def _stream(self, request: Request) -> Response:
        if rendering.wants_json(request):
            return self._live.stream(request, lambda found: json.dumps(found, default=str))
        return self._live.stream(request, lambda found: self._html(request, "overview_live", found))

    async def _do(self, request: Request) -> Response:
        if self._actions is None:
            raise HTTPException(403, "this dashboard only looks: start it with --actions")
        given = await _form(request)
        if not from_here(request) or not same(given.get("secret", ""), self._secret):
            raise HTTPException(403, "the form is not one of ours: load the page again")
        return RedirectResponse(request.scope.get("root_path", "") + await self._actions.do(request, given), 303)

    async def told(self, request: Request, error: Exception) -> Response:
        """One shape for all that goes wrong, and nothing of how it came about."""
        status, message = _status(request, error)
        if "text/html" not in request.headers.get("accept", "") or rendering.wants_json(request):
            return refusal(status, message)
        return rendering.html(self._html(request, "error", {"error": status, "message": message}), status)


def _status(request: Request, error: Exception) -> tuple[int, str]:
    if isinstance(error, HTTPException):
        return error.status_code, _NOT_FOUND if error.status_code == 404 else str(error.detail)
    refused = isinstance(error, CodecError) and request.method == "POST"
    if refused or isinstance(error, AlreadyExistsError | ConflictError | LifecycleError):
        return 409, str(error)
    if isinstance(error, NotFoundError):
        return 404, _NOT_FOUND
    if isinstance(error, RejectedError):
        path = request.url.path.removeprefix(request.scope.get("root_path", ""))
        return (404, _NOT_FOUND) if request.method == "GET" and path in _NAMES else (400, str(error))
    if isinstance(error, CenoteError):
        return 503, str(error)
    return 500, "this page could not be made; the log says why"


async def _form(request: Request) -> dict[str, str]:
    """What a form of ours says; an agent may be named in the address, where any name fits."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _FORM_BYTES_MAX:
            raise HTTPException(413, f"a form of ours has at most {_FORM_BYTES_MAX} bytes")
    try:
        given = dict(parse_qsl(body.decode("utf-8", "replace"), max_num_fields=10))
    except ValueError:
        raise HTTPException(400, "a form of ours has few fields") from None
    named = rendering.asked(request)
    return given | ({"agent": named["agent"]} if "agent" in named else {})


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", str(PAGE))
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= _LIMIT_MAX:
        raise HTTPException(400, f"limit: 1 to {_LIMIT_MAX}")
    return int(text)
