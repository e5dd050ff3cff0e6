"""One connection to one server: options, TLS, authentication, and nats-py's errors mapped to ours."""

import asyncio
import contextlib
import os
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from nats.aio.client import Client
from nats.errors import Error, NoServersError
from pydantic import Secret, SecretStr

from cenote.config import KvConfig
from cenote.errors import CenoteError, SetupError, UnavailableError
from cenote.kv import lane
from cenote.kv.road import FastRoad, PublicRoad, Road

CONNECT_TIMEOUT_S = 2
PING_INTERVAL_S = 2  # with two pings unanswered a frozen server is noticed within 6 s
PINGS_UNANSWERED_MAX = 2
VERSION_MIN = (2, 11)  # direct get by start time and of many subjects


class Connection(NamedTuple):
    """One live connection and the road over it."""

    nc: Client
    road: Road
    server_id: str
    server_name: str
    server_version: tuple[int, int, int]
    max_payload: int


def servers(url: str) -> list[SplitResult]:
    """`nats://a,b:4223,tls://c` → one URL per server; scheme and user carry on to the next."""
    result: list[SplitResult] = []
    scheme, user = "nats", ""
    for part in url.split(","):
        text = part.strip()
        if "://" not in text:
            text = f"{scheme}://{user}{text}" if "@" not in text else f"{scheme}://{text}"
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port or 4222
        except ValueError as error:
            raise SetupError(f"kv.url: {error}", hint="nats://host:port[,host:port …]") from error
        if parts.scheme not in ("nats", "tls") or not host:
            raise SetupError("kv.url names no NATS server", hint="nats://host:port[,host:port …]")
        scheme, user = parts.scheme, parts.netloc.rpartition("@")[0]
        user = user and user + "@"
        host = f"[{host}]" if ":" in host else host
        result.append(parts._replace(netloc=f"{user}{host}:{port}"))
    return result


def tls_context(config: KvConfig) -> ssl.SSLContext | None:
    """The TLS settings of the configuration; None when it has none."""
    if not (config.tls_ca or config.tls_cert):
        return None
    try:
        context = ssl.create_default_context(cafile=str(config.tls_ca) if config.tls_ca else None)
        if config.tls_cert:
            context.load_cert_chain(str(config.tls_cert), str(config.tls_key) if config.tls_key else None)
    except (OSError, ssl.SSLError) as error:
        raise SetupError(f"kv.tls_*: {error}", hint="paths of PEM files") from error
    return context


async def dial(
    server: SplitResult,
    config: KvConfig,
    tls: ssl.SSLContext | None,
    *,
    name: str,
    on_error: Callable[[Client, Exception], Awaitable[None]],
    on_closed: Callable[[Client], Awaitable[None]],
    on_end: Callable[[], None],
) -> Connection:
    """Connect to one server once.

    Raises:
        SetupError: it refuses the credentials, speaks no TLS where TLS is asked for, or is too old.
        UnavailableError: it cannot be reached or does not answer in time.
    """
    nc = Client()
    handlers: dict[int, lane.Handler] = {}
    fast = config.fast_lane and lane.install(nc, handlers)

    seen: list[Exception] = []

    async def error_cb(error: Exception) -> None:
        if nc.is_connected:
            await on_error(nc, error)
        else:
            seen.append(error)

    async def closed_cb() -> None:
        await on_closed(nc)

    try:
        options = _options(server, config, tls, nc)
        await nc.connect(
            server._replace(netloc=server.netloc.rpartition("@")[2]).geturl(),
            name=name,
            error_cb=error_cb,
            disconnected_cb=closed_cb,
            # One client object is one connection: what it buffers dies with it, and a reconnect is a new one.
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            pending_size=0,
            dont_randomize=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=PINGS_UNANSWERED_MAX,
            **options,
        )
        lane.hush(nc, on_end)
        return _checked(nc, handlers if fast else None)
    except (OSError, TimeoutError, Error, ssl.SSLError, CenoteError) as error:
        await hang_up(nc)
        cause: Exception = seen[-1] if isinstance(error, NoServersError) and seen else error
        raise _mapped(cause, server) from cause
    except asyncio.CancelledError:
        await hang_up(nc)
        raise


async def hang_up(nc: Client) -> None:
    """Close for good; a frozen server must not hold us up."""
    transport = lane.socket_transport(nc)
    if transport is not None:
        transport.abort()
    with contextlib.suppress(OSError, TimeoutError, Error):
        await asyncio.wait_for(nc.close(), 1)


def _options(server: SplitResult, config: KvConfig, tls: ssl.SSLContext | None, nc: Client) -> dict[str, Any]:
    options: dict[str, Any] = {"tls": tls} if tls is not None else {}
    wants_tls = server.scheme == "tls" or tls is not None
    user = unquote(server.username) if server.username else config.user
    password = unquote(server.password) if server.password else plain(config.password)

    def secret() -> str:
        # nats-py asks for it after INFO: a server (or someone between) that offers no TLS must not learn it.
        if wants_tls and not lane.server_info(nc).get("tls_required"):
            raise SetupError(f"{server.hostname} offers no TLS", hint="kv.url says tls:// or kv.tls_* is set")
        return password or ""

    if user and password:
        options |= {"user": user, "password": secret}
    elif user:
        options["token"] = lambda: secret() or user
    if config.creds:
        if not os.access(config.creds, os.R_OK):
            raise SetupError(f"kv.creds: {config.creds} cannot be read")
        options["user_credentials"] = str(config.creds)
    return options


def plain(secret: Secret[Any] | SecretStr | None) -> str | None:
    """The text of a setting that is kept as a secret."""
    return str(secret.get_secret_value()) if secret is not None else None


def _checked(nc: Client, handlers: dict[int, lane.Handler] | None) -> Connection:
    if not nc.is_connected:
        raise UnavailableError("the server's greeting was cut short")
    version = nc.connected_server_version
    numbers = (version.major, version.minor, version.patch)
    if numbers < VERSION_MIN:
        raise SetupError(f"nats-server {version} is too old", hint="cenote needs nats-server 2.11 or newer")
    transport = lane.socket_transport(nc)
    fast = FastRoad(transport, handlers) if handlers is not None and transport is not None else None
    road: Road = fast or PublicRoad(nc)
    told = lane.server_info(nc)
    server_id, server_name = str(told.get("server_id", "")), str(told.get("server_name", ""))
    return Connection(nc, road, server_id, server_name, numbers, nc.max_payload)


def _mapped(error: Exception, server: SplitResult) -> CenoteError:
    if isinstance(error, CenoteError):
        return error
    place = f"NATS at {server.hostname}:{server.port}"
    words = str(error).lower()
    if "authorization" in words or "authentication" in words:
        return SetupError(f"{place} refuses the credentials", hint="kv.user, kv.password, kv.creds")
    if isinstance(error, ssl.SSLError):
        return SetupError(f"{place}: {error}", hint="kv.tls_ca, kv.tls_cert, kv.tls_key")
    detail = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    return UnavailableError(f"{place} cannot be reached: {detail}", tier="DISTRIBUTED_KV")
