"""What the commands print: JSON documents, tables on a terminal, tab-separated lines into a pipe.

Keys and values are other people's text: control characters, which could drive a terminal, are printed as escapes.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROL_IN_JSON: Final = re.compile(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_VALUE_CHARS_MAX: Final = 100


def printable(text: object) -> str:
    """A text on one line, control characters and lone surrogates escaped."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))


def json_text(document: Any, *, indent: int | None = 2) -> str:
    """JSON for people and programs: Unicode as it is, but no control character, and nothing UTF-8 cannot carry."""
    text = json.dumps(document, indent=indent, ensure_ascii=False, default=_plain)
    return _CONTROL_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def print_json(document: Any, *, indent: int | None = 2) -> None:
    """One JSON document on stdout."""
    print(json_text(document, indent=indent), flush=True)


def short(value: object, chars_max: int = _VALUE_CHARS_MAX) -> str:
    """A value on one line of a table."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except TypeError:
        text = repr(value)
    text = printable(text)
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on a terminal; into a pipe tab-separated lines below their headers."""
    texts = [[printable("" if cell is None else cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        print("\n".join("\t".join(row) for row in [headers, *texts]))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")  # an id or a key that is cut short is none
    for row in texts:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def stop_printing() -> None:
    """Whoever read our stdout has had enough (`| head`): that is no error, and Python shall not complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def note(text: str) -> None:
    """A remark beside the answer, on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def coloured(word: str, colour: str) -> str:
    """A word in colour where stdout is a terminal that wants it."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return word
    return f"\x1b[{_COLOURS[colour]}m{word}\x1b[0m"


_COLOURS: Final = {"green": 32, "yellow": 33, "red": 31, "dim": 2}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in the output")
