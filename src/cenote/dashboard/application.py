"""The dashboard as an ASGI application: pages, their JSON, the live overview, and a few actions."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from cenote.dashboard import probes
from cenote.dashboard.guard import Guard, form_secret, refusal, same
from cenote.dashboard.pages import PAGE, Pages
from cenote.errors import AlreadyExistsError, CenoteError, NotFoundError, RejectedError
from cenote.store import Store

_HERE: Final = Path(__file__).parent
_TICK_S: Final = 1.0
_LIMIT_MAX: Final = 100
_FORM_BYTES_MAX: Final = 65_536
_NOT_FOUND: Final = "there is nothing here"

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
        actions: whether it may do more than look: flush, hydrate, checkpoint, fork, repair.
        token: what callers must present; None: nothing, for whoever mounts it behind an authentication of his own.
        hosts: names under which it may be asked, without ports; None: any.
        stopping: set when the server stops, so that live pages end.
    """
    board = _Board(store, actions=actions, token=token, stopping=stopping or asyncio.Event())
    return Starlette(
        routes=[
            *board.routes(), *probes.routes(store),
            Mount("/static", StaticFiles(directory=_HERE / "static"), name="static"),
        ],
        middleware=[Middleware(Guard, token=token, hosts=hosts)],
        exception_handlers={CenoteError: _told, HTTPException: _told_http, Exception: _told},
    )  # fmt: skip


class _Board:
    def __init__(self, store: Store, *, actions: bool, token: str | None, stopping: asyncio.Event) -> None:
        self._store = store
        self._pages = Pages(store)
        self._actions = actions
        self._secret = form_secret(token)
        self._stopping = stopping
        self._templates = Environment(
            loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._templates.filters.update(ms=_ms, bytes=_bytes, number=_number)

    def routes(self) -> list[Route]:
        pages = self._pages

        def ask(request: Request, *names: str) -> list[str]:
            return [request.query_params.get(name, "") for name in names]

        found: dict[str, tuple[str, Document]] = {
            "/": ("overview", lambda _: pages.overview()),
            "/agents": ("agents", lambda r: pages.agents(*ask(r, "prefix", "after"), limit=_limit(r))),
            "/agent": ("agent", lambda r: pages.agent(*ask(r, "name", "prefix", "after"), limit=_limit(r))),
            "/key": ("key", lambda r: pages.key(*ask(r, "agent", "key"))),
            "/conflicts": ("conflicts", lambda _: pages.conflicts()),
            "/tasks": ("tasks", lambda r: pages.tasks(*ask(r, "status", "cursor"))),
            "/messages": ("messages", lambda r: pages.messages(*ask(r, "conversation", "to"))),
            "/knowledge": ("knowledge", lambda r: pages.knowledge(*ask(r, "namespace", "cursor"))),
            "/dead-letters": ("dead_letters", lambda _: pages.dead_letters()),
            "/repairs": ("repairs", lambda _: pages.repairs()),
            "/system": ("system", lambda _: pages.system()),
        }
        made = [Route(path, self._page(*of), name=of[0]) for path, of in found.items()]
        made.append(Route("/live", self._live, name="live"))
        return [*made, Route("/do/{what}", self._do, methods=["POST"], name="do")]

    def _page(self, name: str, document: Document) -> Callable[[Request], Awaitable[Response]]:
        async def show(request: Request) -> Response:
            found = await document(request)
            if _wants_json(request):
                return JSONResponse(json.loads(json.dumps(found, default=str)))
            return HTMLResponse(self._html(request, name, found))

        return show

    def _html(self, request: Request, name: str, found: dict[str, Any]) -> str:
        template = self._templates.get_template(f"{name}.html")
        base = request.scope.get("root_path", "")
        return template.render(
            base=base, here=name, page=found, actions=self._actions, secret=self._secret,
            namespace=self._store.config.namespace,
        )  # fmt: skip

    async def _live(self, request: Request) -> Response:
        """The overview once a second, as server-sent events, until the reader or the server leaves."""

        async def events() -> AsyncIterator[str]:
            while not self._stopping.is_set() and not await request.is_disconnected():
                found = await self._pages.overview()
                text = self._html(request, "overview_live", found)
                yield "event: overview\n" + "".join(f"data: {line}\n" for line in text.splitlines()) + "\n"
                try:
                    async with asyncio.timeout(_TICK_S):
                        await self._stopping.wait()
                except TimeoutError:
                    pass

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _do(self, request: Request) -> Response:
        if not self._actions:
            return refusal(403, "this dashboard only looks: start it with --actions")
        given = await _form(request)
        if not same(given.get("secret", ""), self._secret):
            return refusal(403, "the form is not one of ours: load the page again")
        what, base = request.path_params["what"], request.scope.get("root_path", "")
        if what == "repair":
            await self._store.repair()
            return RedirectResponse(f"{base}/repairs", 303)
        agent = self._store.agent(given.get("agent", ""))
        if what == "flush":
            await agent.flush(10)
        elif what == "hydrate":
            await agent.hydrate()
        elif what == "checkpoint":
            await agent.checkpoint(given.get("label") or "from the dashboard")
        elif what == "fork":
            agent = await agent.fork(given.get("new_agent", ""), given.get("checkpoint", ""))
        else:
            raise HTTPException(404)
        return RedirectResponse(str(request.url_for("agent").include_query_params(name=agent.name)), 303)


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _FORM_BYTES_MAX:
            raise HTTPException(413, f"a form of ours has at most {_FORM_BYTES_MAX} bytes")
    return dict(parse_qsl(body.decode("utf-8", "replace"), max_num_fields=10))


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", str(PAGE))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _LIMIT_MAX:
        raise HTTPException(400, f"limit: 1 to {_LIMIT_MAX}")
    return int(text)


def _wants_json(request: Request) -> bool:
    return request.query_params.get("format") == "json" or "application/json" in request.headers.get("accept", "")


async def _told(request: Request, error: Exception) -> Response:
    """One shape for all that goes wrong, and nothing of how it came about."""
    if isinstance(error, NotFoundError | RejectedError) and not isinstance(error, AlreadyExistsError):
        status = 404 if isinstance(error, NotFoundError) or request.method == "GET" else 400
        return refusal(status, _NOT_FOUND if status == 404 else str(error))
    if isinstance(error, AlreadyExistsError):
        return refusal(409, str(error))
    if isinstance(error, CenoteError):
        return refusal(503, str(error))
    return refusal(500, "this page could not be made; the log says why")


async def _told_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, _NOT_FOUND if error.status_code == 404 else str(error.detail))


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    if value >= 120_000:
        return f"{value / 60_000:.0f} min"
    return f"{value / 1000:.1f} s" if value >= 1_000 else f"{value:.0f} ms"


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
