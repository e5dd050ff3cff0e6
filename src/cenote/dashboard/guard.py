"""Who may look: a token, a Host that is ours, and no page of another site that acts in a user's name.

The token comes as `Authorization: Bearer …`, as a cookie, or once as `?token=…`, which becomes the cookie. Actions need
a second secret that a page of ours carries and another site cannot read; a browser that says where a form comes from
must name this very site.
"""

import hashlib
import hmac
from collections.abc import Iterable
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "cenote_token"
_OPEN = ("/livez",)
_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Guard:
    """Lets through what may pass."""

    def __init__(self, app: ASGIApp, *, token: str | None, hosts: Iterable[str] | None) -> None:
        self._app = app
        self._token = token
        self._hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = self._refusal(scope)

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name for name, _ in message["headers"]}
                message["headers"] += [
                    (name.encode(), value.encode()) for name, value in _HEADERS.items() if name.encode() not in known
                ]
            await send(message)

        await (answer or self._app)(scope, receive, dressed)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
            return _refused(headers, 403, "this address is not served here")
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if self._token is None or path in _OPEN:
            return None
        given = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, errors="surrogateescape")
        asked = dict(given).get("token")
        if asked is not None and scope["method"] == "GET" and same(asked, self._token):
            rest = urlencode([pair for pair in given if pair[0] != "token"], errors="surrogateescape")
            here = "/" + scope["path"].lstrip("/")  # with two slashes it would be another server's address
            away = RedirectResponse(here + (f"?{rest}" if rest else ""), 303)
            away.set_cookie(
                _cookie(headers), self._token, httponly=True, samesite="strict", secure=scope["scheme"] == "https",
                path=scope.get("root_path") or "/",
            )  # fmt: skip
            return away
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        cookie = _cookies(headers.get("cookie", "")).get(_cookie(headers))
        if same(bearer, self._token) or (cookie is not None and same(cookie, self._token)):
            return None
        return _refused(headers, 401, "a token is needed: open the address that `cenote status` prints")


def refusal(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An answer that says no."""
    return JSONResponse({"error": status, "message": message}, status, headers)


def _refused(headers: Headers, status: int, message: str) -> Response:
    """The same for somebody of whom nothing is known, as a page where he reads pages; it tells nothing of the store."""
    more = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    if "text/html" not in headers.get("accept", "") or "application/json" in headers.get("accept", ""):
        return refusal(status, message, more)
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{status} · cenote</title>'
        f"<main><h1>cenote</h1><p>{message}</p></main></html>",
        status, more,
    )  # fmt: skip


def from_here(request: Request) -> bool:
    """Whether a form comes from a page of this very site, as far as the browser says; "null" says nothing."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin", "null")
    return origin == "null" or origin.partition("://")[2].lower() == request.headers.get("host", "").lower()


def same(given: str, wanted: str) -> bool:
    """Compared in a time that tells nothing."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def form_secret(token: str | None, store_id: str) -> str:
    """What a form of ours carries. Where there is no token, the id of the store alone is what others cannot know."""
    return hmac.new(f"{token or ''} {store_id}".encode(), b"cenote form", hashlib.sha256).hexdigest()


def _cookie(headers: Headers) -> str:
    """A browser sends the cookies of a host to all its ports: each dashboard of a machine has one of its own."""
    port = headers.get("host", "").rpartition(":")[2]
    return f"{COOKIE}_{port}" if port.isascii() and port.isdigit() else COOKIE


def _cookies(header: str) -> dict[str, str]:
    """Other applications of the host may have set some that no parser takes: each is read by itself."""
    pairs = (one.strip().partition("=") for one in header.split(";"))
    return {name: value.strip('"') for name, _, value in pairs}


def _host(header: str) -> str:
    name = header.rsplit("]", 1)[0] + "]" if header.startswith("[") else header.rsplit(":", 1)[0]
    return name.lower()
