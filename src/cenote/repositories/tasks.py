"""Tasks: what is to be done."""

from cenote.engine.machines import Machines


class Tasks:
    """See the module."""

    def __init__(self, machines: Machines) -> None:
        self._core = machines.core
