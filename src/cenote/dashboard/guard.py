"""Who may look: a token, a Host that is ours, and no page of another site that acts in a user's name.

The token comes as `Authorization: Bearer …`, as a cookie, or once as `?token=…`, which becomes the cookie. Actions need
a second secret that a page of ours carries and another site cannot read.
"""

import hashlib
import hmac
from collections.abc import Iterable
from http.cookies import SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, RedirectResponse, Response
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
            return refusal(403, "this address is not served here")
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if self._token is None or path in _OPEN:
            return None
        given = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        asked = dict(given).get("token")
        if asked is not None and scope["method"] == "GET" and same(asked, self._token):
            rest = urlencode([pair for pair in given if pair[0] != "token"])
            away = RedirectResponse(scope["path"] + (f"?{rest}" if rest else ""), 303)
            away.set_cookie(COOKIE, self._token, httponly=True, samesite="strict", path=scope.get("root_path") or "/")
            return away
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        if same(bearer, self._token) or (cookie is not None and same(cookie.value, self._token)):
            return None
        return refusal(401, "a token is needed: open the address that `cenote status` prints", bearer=True)


def refusal(status: int, message: str, *, bearer: bool = False) -> Response:
    """An answer that says no."""
    return JSONResponse(
        {"error": status, "message": message}, status, {"WWW-Authenticate": "Bearer"} if bearer else None
    )


def same(given: str, wanted: str) -> bool:
    """Compared in a time that tells nothing."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def form_secret(token: str | None) -> str:
    """What a form of ours carries."""
    return hmac.new((token or "").encode(), b"cenote form", hashlib.sha256).hexdigest()


def _host(header: str) -> str:
    name = header.rsplit("]", 1)[0] + "]" if header.startswith("[") else header.rsplit(":", 1)[0]
    return name.lower()
