"""What machines ask over HTTP: alive, ready, healthy, and the metrics. Looking changes nothing.

However many ask at a time, the store is asked once, and all get its answer: a probe must not become a load.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from importlib import import_module
from inspect import isawaitable
from typing import Any, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cenote.errors import CenoteError
from cenote.health import Health, Readiness, Verdict
from cenote.store import Store

T = TypeVar("T")

_NO_STORE = {"Cache-Control": "no-store"}


def routes(store: Store) -> list[Route]:
    """`/livez`, `/readyz`, `/metrics`, `/health` and `/stats` of a store, to be mounted in any Starlette application.
    `/livez` asks nobody: it answers as long as the process does."""
    ready, health, stats = _Shared(store.ready), _Shared(store.health), _Shared(store.stats)

    async def readyz(request: Request) -> Response:
        return _ready(await ready(), verbose="verbose" in request.query_params)

    async def show_health(request: Request) -> Response:
        found = await health()
        return _json(of_health(found), 503 if found.verdict is Verdict.UNHEALTHY else 200)

    async def show_stats(request: Request) -> Response:
        try:
            return _json(asdict(await stats()))
        except CenoteError as error:
            return refused(error)

    async def metrics(request: Request) -> Response:
        told = import_module("cenote.telemetry").exposition(store)
        try:
            body, content_type = await told if isawaitable(told) else told
        except CenoteError as error:
            return refused(error)
        return Response(body, media_type=content_type, headers=_NO_STORE)

    return [
        Route("/livez", _livez), Route("/readyz", readyz), Route("/metrics", metrics),
        Route("/health", show_health), Route("/stats", show_stats),
    ]  # fmt: skip


def of_health(found: Health) -> dict[str, Any]:
    """As `cenote health --json` prints it."""
    checks = [asdict(check) | {"verdict": check.verdict.value} for check in found.checks]
    return {"verdict": found.verdict.value, "checks": checks}


def refused(error: CenoteError) -> Response:
    """One of our errors as an answer: its kind, what it says and what to do, and nothing of how it came about."""
    told = {"error": type(error).__name__, "message": str(error.args[0]), "hint": error.hint}
    return _json(told, 503)


async def _livez(request: Request) -> Response:
    return PlainTextResponse("ok\n", headers=_NO_STORE)


def _ready(found: Readiness, *, verbose: bool) -> Response:
    word = "not ready" if not found.ready else "ready, degraded" if found.degraded else "ready"
    lines = [word, *(f"because: {reason}" for reason in found.reasons)]
    if verbose:
        lines += [f"[{'+' if fits else '-'}] {name}: {text}" for name, (fits, text) in found.parts.items()]
    return PlainTextResponse("\n".join(lines) + "\n", 200 if found.ready else 503, _NO_STORE)


def _json(content: Any, status: int = 200) -> Response:
    return JSONResponse(content, status, _NO_STORE)


class _Shared(Generic[T]):
    """A question whose answer all get who ask while it is on its way."""

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._asked: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(self._answer())
        return await asyncio.shield(self._asked)  # who leaves takes nobody's answer along

    async def _answer(self) -> T:
        return await self._ask()
