"""What all workers write together: on one agent, a map that counts their findings and a set of what is surveyed.

Nobody locks and nobody asks who else is there: each changes the value that it sees, and `update` sees to it that no
change is lost and none counts twice.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import cenote

FINDINGS, SURVEYED = "findings", "surveyed"
NEWEST = "newest"  # the module that was counted last: a register beside the counters


def agent(run: str) -> str:
    """The agent that is everybody's."""
    return f"survey/{run}"


def counting(found: Counter[str], module: str) -> Callable[[cenote.ORMap], None]:
    """Count the findings of a module, by kind."""

    def change(findings: cenote.ORMap) -> None:
        for kind, number in found.items():
            if kind not in findings:
                findings[kind] = cenote.PNCounter()
            findings[kind].increment(number)
        findings[NEWEST] = module

    return change


def adding(module: str) -> Callable[[cenote.ORSet], None]:
    """Add a module to those that are surveyed."""

    def change(surveyed: cenote.ORSet) -> None:
        surveyed.add(module)

    return change


def parts(value: cenote.ORMap | cenote.ORSet) -> Counter[Any]:
    """The numbers of a map's counters; once each of a set's elements."""
    if isinstance(value, cenote.ORSet):
        return Counter(value)
    return Counter({name: value[name].value for name in value if name != NEWEST})
