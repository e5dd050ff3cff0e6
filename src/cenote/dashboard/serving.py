"""The admin port: the dashboard, served within the process that flushes."""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn

from cenote.dashboard.application import app
from cenote.errors import SetupError
from cenote.store import Store

TOKEN_FILE = "admin-token"
_LEAVE_S = 3


@asynccontextmanager
async def served(store: Store, *, port: int, actions: bool, token_file: Path | None) -> AsyncIterator[str]:
    """Serve the dashboard meanwhile; yields its address, token included.

    port: 0: any free one. token_file: where a token that nobody configured is kept, for its owner alone; None: nowhere.

    Raises:
        SetupError: the address is taken, or is none of this machine's.
    """
    settings = store.config.admin
    token = settings.token.get_secret_value() if settings.token else _token(token_file)
    stopping = asyncio.Event()
    hosts = {settings.host.lower(), "localhost", "127.0.0.1", "[::1]"}
    wanted = None if settings.host in ("0.0.0.0", "::") else hosts
    board = app(store, actions=actions, token=token, hosts=wanted, stopping=stopping)
    listener = _listener(settings.host, port)
    server = uvicorn.Server(
        uvicorn.Config(
            board, lifespan="off", log_config=None, log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=_LEAVE_S,
        )
    )  # fmt: skip
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]  # signals are ours: the store closes after this
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="cenote-admin")
    try:
        yield f"http://{_in_url(settings.host)}:{listener.getsockname()[1]}/?token={token}"
    finally:
        stopping.set()
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)


def _token(file: Path | None) -> str:
    """The one that is kept there, or a new one."""
    if file is None:
        return secrets.token_urlsafe(24)
    with contextlib.suppress(FileNotFoundError):
        return file.read_text().strip()
    made = secrets.token_urlsafe(24)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as new:
        new.write(made)
    return made


def _listener(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)  # known to be TCP, asyncio does not hold small writes back
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise SetupError(
            f"the admin port cannot be opened at {host}:{port}: {error.strerror}", hint="set admin.port, 0 for any"
        ) from error
    return listener


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
