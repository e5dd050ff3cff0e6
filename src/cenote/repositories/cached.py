"""Cached results of slow questions."""

from cenote.engine.machines import Machines


class Cached:
    """See the module."""

    def __init__(self, machines: Machines) -> None:
        self._core = machines.core
