"""Exit codes, and which error means which."""

from enum import IntEnum

from cenote.errors import CenoteError, NotFoundError, RejectedError


class Exit(IntEnum):
    """What a command's exit code says. `USAGE` is sysexits.h's EX_USAGE."""

    DONE = 0
    DEGRADED = 1
    FAILED = 2
    USAGE = 64
    INTERRUPTED = 130


class BadUsage(CenoteError):
    """An option or a setting that cannot be meant; nothing was tried."""


def exit_of(error: CenoteError) -> Exit:
    """The exit code of a command that ended with this error."""
    if isinstance(error, BadUsage | RejectedError):
        return Exit.USAGE
    return Exit.DEGRADED if isinstance(error, NotFoundError) else Exit.FAILED
