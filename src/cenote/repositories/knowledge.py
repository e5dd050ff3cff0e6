"""Knowledge: what is known."""

from cenote.engine.machines import Machines


class Knowledge:
    """See the module."""

    def __init__(self, machines: Machines) -> None:
        self._core = machines.core
