"""Messages: what was said."""

from cenote.engine.machines import Machines


class Messages:
    """See the module."""

    def __init__(self, machines: Machines) -> None:
        self._core = machines.core
