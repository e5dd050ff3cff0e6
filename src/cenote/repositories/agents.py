"""Agents: who they are."""

from cenote.engine.machines import Machines


class Agents:
    """See the module."""

    def __init__(self, machines: Machines) -> None:
        self._core = machines.core
