"""The process that serves a data directory: recorded there, started in the background, stopped from outside.

Authority: `serve.json` says which process serves, its start time included, so that a later process of the same pid is
not taken for it. Whether the servers run is for `embedded` to say.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from cenote.cli.logs import LogFormat
from cenote.cli.options import Common
from cenote.config import Config
from cenote.embedded.process import Process, alive, myself, rotate, size, stop, tail
from cenote.embedded.state import DataDir, write_durably
from cenote.errors import CenoteError, ServerStartError

_STOP_S: Final = 60  # it drains, and the last user stops the servers
_RECORD: Final = "serve.json"
_LOG: Final = "serve.log"
_ADMIN: Final = "admin.url"


def recorded(directory: Path) -> Process | None:
    """The process that serves this data directory, if it lives."""
    try:
        process = msgspec.json.decode((directory / _RECORD).read_bytes(), type=Process)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return process if alive(process) else None


def record(directory: Path, admin: str | None) -> None:
    """Write down that this process serves, and the address of its dashboard, unless another one does."""
    if recorded(directory) is None:
        write_durably(directory / _RECORD, msgspec.json.encode(myself()))
        if admin is not None:
            write_durably(directory / _ADMIN, admin.encode())


def admin(directory: Path) -> str | None:
    """The address of the dashboard of the process that serves this data directory, token included."""
    if recorded(directory) is None:
        return None
    try:
        return (directory / _ADMIN).read_text()
    except FileNotFoundError:
        return None


def forget(directory: Path) -> None:
    """This process serves no longer."""
    if recorded(directory) == myself():
        (directory / _RECORD).unlink(missing_ok=True)
        (directory / _ADMIN).unlink(missing_ok=True)


def log_file(directory: Path) -> Path:
    """What a background process prints."""
    return directory / _LOG


def start(config: Config, common: Common, *, actions: bool, log_format: LogFormat | None = None) -> dict[str, Any]:
    """Start a process of its own session that serves; returns what it says once it is ready.

    Raises:
        ServerStartError: it could not start; the message is its last word.
    """
    directory = DataDir.locate(config.embedded.data_dir)
    directory.create()
    log = log_file(directory.path)
    rotate(log)
    began = size(log)
    ours, theirs = os.pipe()
    command = [sys.executable, "-P", "-m", "cenote.cli", "up", "--ready-fd", str(theirs)]
    if actions:
        command.append("--actions")
    if log_format is not None:
        command += ["--log-format", log_format]
    if common.config is not None:
        command += ["--config", str(common.config.absolute())]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as output, os.fdopen(ours, "rb") as pipe:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | _environment(common, directory.path),
            start_new_session=True,
            pass_fds=(theirs,),
        )
        os.close(theirs)
        try:
            ready = pipe.read()
        except KeyboardInterrupt:
            child.terminate()
            raise
    if ready:
        answer: dict[str, Any] = json.loads(ready)
        return answer
    child.wait()
    words = [line for line in tail(log, began).splitlines() if line.startswith("error: ")]
    raise ServerStartError(
        f"{words[-1].removeprefix('error: ')}; log: {log}" if words else f"it ended at once; log: {log}"
    )


def announce(descriptor: int, answer: dict[str, Any]) -> None:
    """Tell the process that started us that we are ready."""
    with os.fdopen(descriptor, "w") as pipe:
        json.dump(answer, pipe)


def end(process: Process) -> None:
    """Ask a serving process to leave, and wait. CenoteError when it may not be asked, or does not go."""
    try:
        gone = stop(process, [(signal.SIGTERM, _STOP_S)])
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise CenoteError(f"process {process.pid} belongs to somebody else", hint="run as its user") from error
    if not gone:
        raise CenoteError(f"process {process.pid} has not ended within {_STOP_S} s", hint=f"kill -9 {process.pid}")


def _environment(common: Common, directory: Path) -> dict[str, str]:
    """The given settings as variables: arguments could be read by every user of the machine."""
    given = common.overrides() | {"embedded__data_dir": str(directory)}
    return {f"CENOTE_{name.upper()}": value for name, value in given.items()}
