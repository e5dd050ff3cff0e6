"""How a document becomes a page or JSON. Text of users stays text: what is not printable is spelt out, so that no name
turns the writing round, and no half of a surrogate pair breaks a page."""

import json
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

_TEMPLATES: Final = Path(__file__).parent / "templates"
_FIELDS_MAX: Final = 20
_SECONDS: Final = 120  # that the picture of the lag is wide, 5 units each, and 100 high


def environment() -> Environment:
    """The templates, with their filters."""
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=printable,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update(ms=ms, bytes=size, number=number, urlencode=encoded, raw=Markup.escape, points=points)
    made.globals["top"] = top
    return made


def html(text: str, status: int = 200) -> Response:
    """A page."""
    return HTMLResponse(text.encode("utf-8", "backslashreplace"), status)


def as_json(document: Any) -> Response:
    """The same document as JSON; ASCII, for a key may hold what UTF-8 cannot carry."""
    return Response(json.dumps(document, default=str), media_type="application/json")


def wants_json(request: Request) -> bool:
    """Whether the caller asks for the document, not for the page."""
    return request.query_params.get("format") == "json" or "application/json" in request.headers.get("accept", "")


def asked(request: Request) -> dict[str, str]:
    """What the address asks for, by name; each character as `encoded` wrote it."""
    text = request.scope["query_string"].decode("latin-1")
    try:
        return dict(parse_qsl(text, keep_blank_values=True, errors="surrogatepass", max_num_fields=_FIELDS_MAX))
    except ValueError:  # bytes that are no text, or far too many fields
        return dict(request.query_params)


def encoded(value: object) -> str:
    """A text as part of an address, which `asked` reads again, whatever it holds."""
    return quote(str(value), safe="", errors="surrogatepass")


def printable(value: Any) -> Any:
    """A text with whatever is not printable spelt out; anything else as it is."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(
        one if one.isprintable() or one in "\n\t" else ascii(one)[1:-1] for one in value
    )  # fmt: skip


def ms(value: float | None) -> str:
    """A duration."""
    if value is None:
        return "–"
    if value >= 120_000:
        return f"{value / 60_000:.0f} min"
    return f"{value / 1000:.1f} s" if value >= 1_000 else f"{value:.0f} ms"


def size(value: float) -> str:
    """A number of bytes."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def number(value: float | None) -> str:
    """A count."""
    return "–" if value is None else f"{value:,.0f}"


def top(past: list[dict[str, Any]], window_ms: float) -> float:
    """What the upper edge of the picture of the lag stands for, in ms: the window is never above its middle."""
    return max([2 * window_ms, *(one[name] or 0 for one in past for name in ("lag_ms_p95", "oldest_dirty_ms"))])


def points(past: list[dict[str, Any]], name: str, highest: float) -> list[str]:
    """The lines of a picture of what was seen, as SVG writes them: one ends where nothing is known."""
    lines: list[list[str]] = [[]]
    for one in past:
        if one[name] is None:
            lines.append([])
        elif one["ago_s"] <= _SECONDS:
            lines[-1].append(f"{5 * (_SECONDS - one['ago_s']):.1f},{100 - 100 * one[name] / highest:.1f}")
    return [" ".join(line) for line in lines if line]
