"""What to tell the user when a server or its directory fails: the server's own words, and a way out."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from cenote.embedded.process import Process, alive, tail
from cenote.errors import ServerStartError

_FULL = "the disk is full: free some space, or give another data_dir"
_READ_ONLY = "give a data_dir that can be written"
_HINTS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: "the disk quota is used up: free some space, or give another data_dir",
}


def not_started(what: str, running: Process, log: Path, since: int) -> ServerStartError:
    """A server that ended, or does not answer in time; `since` is where its log began this time."""
    words = tail(log, since)
    verb = "does not answer" if alive(running) else "ended at its start"
    return ServerStartError(f"{what} {verb}, see {log}:\n{words}", hint=hint_for(words))


def hint_for(words: str) -> str | None:
    """The way out of the commonest troubles that servers tell."""
    if "No space left" in words or "no space left" in words:
        return _FULL
    return _READ_ONLY if "ead-only file system" in words else None


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say what the operating system's errors mean for a data directory."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename or path}: {error.strerror or error}"
        hint = _HINTS.get(error.errno or 0, _READ_ONLY)
        raise ServerStartError(f"the data directory {path} cannot be used: {what}", hint=hint) from error
