"""Sessions: what lives for an hour."""

from cenote.engine.machines import Machines


class Sessions:
    """See the module."""

    def __init__(self, machines: Machines) -> None:
        self._core = machines.core
