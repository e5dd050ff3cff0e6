"""The overview, made once for all who look at the same time, and as server-sent events."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

_TICK_S: Final = 1.0
_FRESH_S: Final = 0.5
_KEPT: Final = 120  # ticks that the picture shows
_READERS_MAX: Final = 100
_LIFE_S: Final = 600  # then a reader asks again by himself, and must show his token again
_SLOW_S: Final = 20  # whoever does not read for so long is gone

Document = dict[str, Any]


class Ticks:
    """Looks at the store on behalf of everybody: those who ask within half a second get the same document, which bears
    its number as `tick`."""

    def __init__(self, make: Callable[[], Awaitable[Document]]) -> None:
        self._make = make
        self._made: Document | None = None
        self._made_at = 0.0
        self._making: asyncio.Task[Document] | None = None
        self._number = 0
        self._seen: deque[tuple[float, float | None, int]] = deque(maxlen=_KEPT)

    async def now(self) -> Document:
        """The document of this moment."""
        if self._made is not None and time.monotonic() - self._made_at < _FRESH_S:
            return self._made
        if self._making is None or self._making.done():
            self._making = asyncio.create_task(self._look())
        return await asyncio.shield(self._making)  # who leaves takes nobody's answer along

    async def _look(self) -> Document:
        made = await self._make()
        self._number += 1
        stats = made["stats"]["value"]
        if stats is not None:
            self._seen.append((time.monotonic(), stats["windows"]["10s"]["p95"], stats["oldest_dirty_ms"]))
        now = time.monotonic()
        past = [
            {"ago_s": round(now - at, 1), "lag_ms_p95": p95, "oldest_dirty_ms": oldest}
            for at, p95, oldest in self._seen
        ]
        self._made = {"tick": self._number, **made, "past": past}
        self._made_at = now
        return self._made


class Live:
    """The live overview's stream."""

    def __init__(self, ticks: Ticks, stopping: asyncio.Event) -> None:
        self._ticks = ticks
        self._stopping = stopping
        self._readers = 0

    def stream(self, request: Request, text: Callable[[Document], str]) -> Response:
        """A tick each second, until the reader or the server leaves, or some minutes have passed."""
        if self._readers >= _READERS_MAX:
            raise HTTPException(503, f"{_READERS_MAX} live pages are open already; reload this one to see it as it is")
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        return _Prompt(self._events(request, text), media_type="text/event-stream")

    async def _events(self, request: Request, text: Callable[[Document], str]) -> AsyncIterator[str]:
        end = time.monotonic() + _LIFE_S
        self._readers += 1
        try:
            while not self._stopping.is_set() and time.monotonic() < end and not await request.is_disconnected():
                found = await self._ticks.now()
                lines = "".join(f"data: {line}\n" for line in text(found).splitlines())
                yield f"id: {found['tick']}\nevent: overview\n{lines}\n"
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TICK_S):
                        await self._stopping.wait()
        finally:
            self._readers -= 1


class _Prompt(StreamingResponse):
    """Ends when its reader does not read."""

    async def stream_response(self, send: Send) -> None:
        async def prompt(message: Any) -> None:
            async with asyncio.timeout(_SLOW_S):
                await send(message)

        with contextlib.suppress(TimeoutError):
            await super().stream_response(prompt)
