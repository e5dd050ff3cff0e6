"""SQL lives in files; this module hands out its text, by name, for one namespace.

A query file holds blocks that begin with `-- name: x`; a migration is a whole file. In both, `{agents}`
stands for the namespace's schema, quoted. It is the only thing ever put into SQL text: all else travels as
parameters.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Final

from cenote.naming import Names

SCHEMAS: Final = ("agents", "tasks", "messages", "knowledge")
"""The schemas a namespace owns, by the names under which SQL files refer to them."""

_BLOCK = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_COMMENT = re.compile(r"^--.*\n", re.MULTILINE)


@cache
def blocks() -> Mapping[str, str]:
    """All named blocks of `queries/*.sql`, comments and placeholders included."""
    found: dict[str, str] = {}
    for file in sorted(files("cenote.sql").joinpath("queries").iterdir(), key=lambda f: f.name):
        _, *parts = _BLOCK.split(file.read_text(encoding="utf-8"))
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            assert name not in found, f"two queries are called {name}"
            found[name] = text
    return found


def placed(text: str, names: Names) -> str:
    """`text` with its schema placeholders filled in."""
    for schema in SCHEMAS:
        text = text.replace("{" + schema + "}", names.schema(schema))
    return text


class Queries(Mapping[str, str]):
    """Query texts of one namespace by name, without comments."""

    def __init__(self, names: Names) -> None:
        self._texts = {name: placed(_COMMENT.sub("", text), names).strip() for name, text in blocks().items()}

    def __getitem__(self, name: str) -> str:
        return self._texts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)
