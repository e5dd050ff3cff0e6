"""Looking at a data directory and stopping its servers from outside: `cenote status`, `cenote down`."""

import fcntl
import os
from pathlib import Path
from typing import Any, NamedTuple

from cenote.embedded.locks import close_lock, exclusive, open_lock, try_lock
from cenote.embedded.process import alive, holders
from cenote.embedded.servers import describe, stopper
from cenote.embedded.state import DataDir, Name
from cenote.embedded.trouble import explained
from cenote.embedded.waiting import blocking


class Stopped(NamedTuple):
    """`servers`: what ran and was stopped. `users`: pids that still use them, so that nothing was stopped
    (empty when there are some, but this process may not see them)."""

    servers: tuple[Name, ...]
    users: tuple[int, ...]
    in_use: bool


async def stop(data_dir: str | Path | None = None) -> Stopped:
    """Stop the servers of a data directory, unless somebody uses them."""
    directory = DataDir.locate(data_dir)
    if not directory.start_lock.exists():
        return Stopped((), (), False)
    with explained(directory.path):
        lease = open_lock(directory.users_lock)
        try:
            async with exclusive(directory.start_lock):
                if not try_lock(lease, fcntl.LOCK_EX):
                    return Stopped((), await blocking(_users, directory), True)
                return Stopped(tuple(await stopper(directory).stop()), (), False)
        finally:
            close_lock(lease)


def inspect(data_dir: str | Path | None = None) -> dict[str, Any] | None:
    """What is known about a data directory, without starting or locking anything; None when there is nothing.

    As `Servers.info()`, and for each server `alive`, and `users`, the pids that hold a lease as far as we can
    see.
    """
    directory = DataDir.locate(data_dir)
    state = directory.load()
    if state is None:
        return None
    described = describe(directory, state, ["nats", "postgres"])
    for name in ("nats", "postgres"):
        server = state.server(name)
        if server is not None:
            described[name]["alive"] = alive(server.process)
    return {**described, "users": list(_users(directory))}


def _users(directory: DataDir) -> tuple[int, ...]:
    return tuple(pid for pid in holders(directory.users_lock) if pid != os.getpid())
