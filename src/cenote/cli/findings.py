"""What `doctor` finds: one finding for each thing it looked at."""

from enum import Enum
from typing import NamedTuple


class Grade(Enum):
    """How a finding is meant. `SKIPPED`: it could not be looked at, and something else says why."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    FAILED = "failed"


class Finding(NamedTuple):
    """One thing: what was found, and what to type when it is not as it should be."""

    name: str
    grade: Grade
    found: str
    type: str | None = None


def ok(name: str, found: str) -> Finding:
    """As it should be."""
    return Finding(name, Grade.OK, found)


def skipped(name: str, found: str, to_type: str | None = None) -> Finding:
    """Not looked at."""
    return Finding(name, Grade.SKIPPED, found, to_type)


def warning(name: str, found: str, to_type: str) -> Finding:
    """It works, but not as it should."""
    return Finding(name, Grade.WARNING, found, to_type)


def failed(name: str, found: str, to_type: str) -> Finding:
    """It does not work."""
    return Finding(name, Grade.FAILED, found, to_type)
