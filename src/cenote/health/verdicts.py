"""What a look at the store's health answers."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Verdict(Enum):
    """How a part, or the whole, is doing."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


_ORDER = [Verdict.HEALTHY, Verdict.DEGRADED, Verdict.UNHEALTHY]


@dataclass(frozen=True, slots=True)
class Check:
    """One part.

    Attributes:
        verdict, reason: how it is doing, and why in words.
        latency_ms: the measured time, where there is one.
        hint: what to do about it; None while all is well.
        details: the figures behind the verdict.
    """

    name: str
    verdict: Verdict
    reason: str
    latency_ms: float | None = None
    hint: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Health:
    """The worst of its checks, and the checks."""

    verdict: Verdict
    checks: tuple[Check, ...]

    @classmethod
    def of(cls, checks: Iterable[Check]) -> "Health":
        """The health that these checks add up to."""
        every = tuple(checks)
        return cls(max((check.verdict for check in every), key=_ORDER.index), every)

    def __str__(self) -> str:
        parts = [f"{check.name}: {check.verdict.value} ({check.reason})" for check in self.checks]
        return f"{self.verdict.value} — " + "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a process should be sent work.

    Attributes:
        ready: writes are taken.
        degraded: not everything is well; `reasons` say what.
        reasons: in words; empty when all is well.
        parts: each part that was looked at: whether it lets the process work, and what was found.
    """

    ready: bool
    degraded: bool
    reasons: tuple[str, ...]
    parts: dict[str, tuple[bool, str]] = field(default_factory=dict)
