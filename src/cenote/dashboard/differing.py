"""What changed between two values, for whoever reads: by path, and by line in long texts; never more than fits."""

import difflib
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from cenote import limits
from cenote.dashboard.showing import HIDDEN, content, secret, shown
from cenote.model.merging.base import Merging

CHANGES_MAX: Final = 50
_NODES_MAX: Final = 20_000  # places that are compared
_LINES_MAX: Final = 400  # of a text: finding what two have in common may take the square of it
_LINE_CHARS: Final = 300
_HUNK_LINES: Final = 60
_CHARS: Final = 200
_ABSENT: Final = object()


def differences(key: str, old: Any, new: Any, *, was_deleted: bool = False, deleted: bool = False) -> dict[str, Any]:
    """From one value of a key to the next.

    Returns:
        `{"changes": [{"path", "old", "new", "lines"}], "more": bool}`: `old` and `new` as text, None where there is
        nothing; `lines`: of texts of several lines, those that differ, each beginning with `+`, `-` or a blank.
        `more`: there are further ones.
    """
    walk = _Walk()
    found = list(islice(walk.between("", _ABSENT if was_deleted else old, _ABSENT if deleted else new, 0), CHANGES_MAX))
    listed = [_told(key, *change) for change in found]
    return {"changes": listed, "more": len(found) == CHANGES_MAX or walk.left <= 0}


class _Walk:
    """Goes through two values side by side."""

    def __init__(self) -> None:
        self.left = _NODES_MAX

    def between(self, path: str, old: Any, new: Any, depth: int) -> Iterator[tuple[str, Any, Any]]:
        """Each place that differs, with both values."""
        self.left -= 1
        if self.left <= 0:
            return
        old, new = _plain(old), _plain(new)
        if depth < limits.DASHBOARD_DEPTH and type(old) is type(new) is dict:
            for name in [*old, *(name for name in new if name not in old)]:
                inner = f"{path}.{name}" if path else str(name)
                if secret(name):
                    if old.get(name, _ABSENT) != new.get(name, _ABSENT):
                        yield inner, _Hidden(name in old), _Hidden(name in new)
                else:
                    yield from self.between(inner, old.get(name, _ABSENT), new.get(name, _ABSENT), depth + 1)
        elif depth < limits.DASHBOARD_DEPTH and type(old) is type(new) and isinstance(old, list | tuple):
            for place in range(max(len(old), len(new))):
                one = old[place] if place < len(old) else _ABSENT
                other = new[place] if place < len(new) else _ABSENT
                yield from self.between(f"{path}[{place}]", one, other, depth + 1)
                if self.left <= 0:
                    return
        elif type(old) is not type(new) or old != new:
            yield path, old, new


class _Hidden:
    """What is not to be shown, and whether it is there."""

    def __init__(self, there: bool) -> None:
        self.there = there


def _plain(value: Any) -> Any:
    return content(value) if isinstance(value, Merging) else value


def _told(key: str, path: str, old: Any, new: Any) -> dict[str, Any]:
    lines = None
    if isinstance(old, str) and isinstance(new, str) and ("\n" in old or "\n" in new) and not secret(key):
        lines = _lines(old, new)
    return {"path": path, "old": _text(key, old), "new": _text(key, new), "lines": lines}


def _text(key: str, value: Any) -> str | None:
    if value is _ABSENT:
        return None
    if isinstance(value, _Hidden):
        return HIDDEN if value.there else None
    text = shown(key, value)
    return text if len(text) <= _CHARS else text[:_CHARS] + " …"


def _lines(old: str, new: str) -> list[str] | None:
    """The lines that differ, with one on either side; None where the texts are too long to be compared."""
    before, after = old.split("\n", _LINES_MAX), new.split("\n", _LINES_MAX)
    if len(before) > _LINES_MAX or len(after) > _LINES_MAX:
        return None
    found = list(islice(difflib.unified_diff(before, after, lineterm="", n=1), 2, 2 + _HUNK_LINES + 1))
    cut = [line if len(line) <= _LINE_CHARS else line[:_LINE_CHARS] + " …" for line in found[:_HUNK_LINES]]
    return [*cut, "…"] if len(found) > _HUNK_LINES else cut
