"""`up`, `down`, `serve`: processes that keep a store served."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cenote.cli.exits import BadUsage
from cenote.cli.logs import LogFormat
from cenote.cli.options import SERVERS, Common, command
from cenote.cli.output import print_json

if TYPE_CHECKING:
    from cenote.config import Config
    from cenote.store import Store

app = typer.Typer()

Logs = Annotated[
    LogFormat | None, typer.Option("--log-format", help="How it logs to stderr; none: as admin.log_format says.")
]
Actions = Annotated[bool, typer.Option("--actions", help="The dashboard may do more than look.")]


@command(app, "up", panel=SERVERS)
def up(
    common: Common,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="In the background; returns when it is ready.")
    ] = False,
    actions: Actions = False,
    log_format: Logs = None,
    ready_fd: Annotated[int | None, typer.Option("--ready-fd", hidden=True)] = None,
) -> int:
    """Start the embedded servers and serve them until Ctrl-C: flush, evict, repair, restart what dies, show a
    dashboard.
    """
    from cenote.cli import daemon
    from cenote.cli.reach import data_dir, embedded_names

    config = common.load()
    if not embedded_names(config):
        raise BadUsage("kv.url and sql.url name servers: there is nothing to start", hint="to flush them: cenote serve")
    if not detach:
        form = log_format or LogFormat(config.admin.log_format)
        return _serve(config, common, form, actions=actions, ready_fd=ready_fd, port=_any_port(config))
    directory = data_dir(config)
    if directory is None:
        raise BadUsage("a temporary data directory cannot be found again", hint="--detach needs --data-dir DIR")
    already = daemon.recorded(directory)
    if already is None:
        answer = daemon.start(config, common, actions=actions, log_format=log_format) | {"already": False}
    else:
        answer = {"pid": already.pid, "data_dir": str(directory), "already": True}
    if common.json:
        print_json(answer)
    else:
        begun = "already serves" if answer["already"] else "serves"
        print(f"process {answer['pid']} {begun} {directory}; log: {daemon.log_file(directory)}; end it: cenote down")
        if address := daemon.admin(directory):
            print(f"dashboard: {address}")
    return 0


@command(app, "down", panel=SERVERS)
def down(common: Common) -> int:
    """Stop the process that serves, and the embedded servers; fine when nothing runs.

    Exit code 2 when other processes still use the servers: those keep running.
    """
    import asyncio

    from cenote.cli import daemon
    from cenote.cli.reach import data_dir
    from cenote.embedded import stop

    directory = data_dir(common.load())
    if directory is None:
        raise BadUsage("a temporary data directory cannot be found again", hint="give --data-dir DIR")
    before = _alive(directory)
    serving = daemon.recorded(directory)
    if serving is not None:
        daemon.end(serving)
    stopped = asyncio.run(stop(directory))
    after = _alive(directory)
    ended = [name for name in before if name not in after]
    answer = {
        "data_dir": str(directory),
        "process": None if serving is None else serving.pid,
        "stopped": ended,
        "in_use": stopped.in_use,
        "users": list(stopped.users),
    }
    if common.json:
        print_json(answer)
    elif stopped.in_use:
        users = ", ".join(map(str, stopped.users)) or "another process"
        print(f"the servers in {directory} are still used by {users}; they stop when it leaves")
    else:
        names = [*([f"process {serving.pid}"] if serving else []), *ended]
        print(f"stopped {', '.join(names)}" if names else f"nothing runs in {directory}")
    return 2 if stopped.in_use else 0


@command(app, "serve", panel=SERVERS)
def serve(common: Common, actions: Actions = False, log_format: Logs = None) -> int:
    """Flush and evict until SIGTERM or Ctrl-C, on the servers that are configured; embedded ones are started.

    With admin.port also a dashboard, probes and metrics at that port.
    """
    config = common.load()
    form = log_format or LogFormat(config.admin.log_format)
    return _serve(config, common, form, actions=actions, ready_fd=None, port=config.admin.port)


def _alive(directory: Path) -> list[str]:
    from cenote.embedded import inspect

    found = inspect(directory) or {}
    return [name for name in ("nats", "postgres") if (found.get(name) or {}).get("alive")]


def _any_port(config: "Config") -> int | None:
    """`up` shows a dashboard wherever it is installed."""
    from importlib.util import find_spec

    if config.admin.port is not None or find_spec("starlette") is None or find_spec("uvicorn") is None:
        return config.admin.port
    return 0


def _serve(
    config: "Config", common: Common, form: LogFormat, *, actions: bool, ready_fd: int | None, port: int | None
) -> int:
    import asyncio

    from cenote.cli import reach
    from cenote.cli.logs import log_to_stderr
    from cenote.cli.serving import dashboard, until_signal

    directory = reach.data_dir(config) if reach.embedded_names(config) else None

    def ready(store: "Store", address: str | None) -> None:
        from cenote.cli import daemon

        answer = _answer(store) | {"admin": address}
        if directory is not None:
            daemon.record(directory, address)
        if ready_fd is not None:
            daemon.announce(ready_fd, answer)
        elif common.json:
            print_json(answer, indent=None)
        else:
            print(_greeting(answer), flush=True)

    try:
        with log_to_stderr(form, config.namespace):
            beside = partial(dashboard, port=port, actions=actions, directory=directory)
            asyncio.run(until_signal(config, ready, beside))
    finally:
        if directory is not None:
            from cenote.cli import daemon

            daemon.forget(directory)
    return 0


def _answer(store: "Store") -> dict[str, Any]:
    import os

    servers = store.servers or {}
    named = {"nats": str(store.config.kv.url), "postgres": str(store.config.sql.url)}
    return {
        "pid": os.getpid(),
        "namespace": store.config.namespace,
        "data_dir": servers.get("data_dir"),
        "servers": {name: (servers.get(name) or {}).get("address") or url for name, url in named.items()},
    }


def _greeting(answer: dict[str, Any]) -> str:
    servers = ", ".join(f"{name} at {address}" for name, address in answer["servers"].items())
    where = f"; data in {answer['data_dir']}" if answer["data_dir"] else ""
    seen = f"\ndashboard: {answer['admin']}" if answer["admin"] else ""
    return f"process {answer['pid']} serves {servers}{where}; Ctrl-C ends it{seen}"
