"""The runbook: for each alert, check and error what it means, how to look, and what to do.

It is part of the package, so that it can be read where no page can.
"""

import re
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Final

_SECTION: Final = re.compile(r"^### (.+)\n\n((?:(?!#).*\n)+)", re.MULTILINE)


@cache
def text() -> str:
    """The whole page, as Markdown."""
    return files(__package__).joinpath("runbook.md").read_text(encoding="utf-8")


@cache
def sections() -> dict[str, str]:
    """What it says, by the names of alerts, checks and errors."""
    return {name: said.strip() for name, said in _SECTION.findall(text())}


def section(name: str) -> tuple[str, str] | None:
    """The section of this name, whatever its case: the name as it is written, and what it says."""
    return next(((known, said) for known, said in sections().items() if known.lower() == name.lower()), None)


def similar(name: str) -> list[str]:
    """Names that may have been meant."""
    known = {one.lower(): one for one in sections()}
    close = get_close_matches(name.lower(), known, n=3) or [one for one in known if name.lower() in one][:3]
    return [known[one] for one in close]
