"""Named points in the flow where a test may crash the process or let another actor act.

Production code asks `if points.armed:` first, so a disarmed point costs one global look-up. Two ways to arm:

- the environment variable `CENOTE_CRASH_AT=flush.committed:3` makes the process SIGKILL itself when it crosses
  the point `flush.committed` for the third time;
- a test sets `points.hook` to a coroutine function, which is awaited with the point's name, and `points.armed`.
"""

import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable

_wanted, _, _nth = os.environ.get("CENOTE_CRASH_AT", "").partition(":")
_crossings: Counter[str] = Counter()

hook: Callable[[str], Awaitable[None]] | None = None
armed: bool = bool(_wanted)


async def hit(name: str) -> None:
    """Cross the point `name`: crash here when told to, else await the test's hook, if any."""
    _crossings[name] += 1
    if name == _wanted and _crossings[name] == int(_nth or 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if hook is not None:
        await hook(name)
