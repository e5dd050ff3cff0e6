"""What a nats-server says of itself before anybody logs in: enough to tell an outage from wrong credentials, and a
cluster from a lone server."""

import asyncio
import json
import ssl
from typing import Any, Final

from cenote.config import Config
from cenote.errors import UnavailableError
from cenote.kv.dial import CONNECT_TIMEOUT_S, servers

_INFO: Final = b"INFO "
_INFO_BYTES_MAX: Final = 64 * 1024


async def greeting(host: str, port: int) -> dict[str, Any]:
    """The server's INFO.

    Raises:
        UnavailableError: nothing listens there, or it is no nats-server.
    """
    place = f"{host}:{port}"
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port, limit=_INFO_BYTES_MAX)
            try:
                line = await reader.readline()
            finally:
                writer.close()
    except TimeoutError as error:
        raise UnavailableError(f"{place} did not say within {CONNECT_TIMEOUT_S} s that it is NATS") from error
    except (OSError, ValueError, ssl.SSLError) as error:
        raise UnavailableError(f"{place}: {error}") from error
    try:
        info: dict[str, Any] = json.loads(line.removeprefix(_INFO)) if line.startswith(_INFO) else {}
    except ValueError:
        info = {}
    if "server_id" not in info:
        raise UnavailableError(f"{place} listens, but is no nats-server")
    return info


async def cluster_warning(config: Config) -> str | None:
    """A cluster whose buckets have one copy each loses them with the machine that holds it."""
    if config.kv.url is None or config.kv.replicas > 1:
        return None
    named = servers(config.kv.url.get_secret_value())
    several = len({(server.hostname, server.port) for server in named}) > 1
    for server in [] if several else named:
        try:
            info = await greeting(str(server.hostname), server.port or 4222)
        except UnavailableError:
            continue
        several = bool(info.get("cluster")) and len(info.get("connect_urls") or []) > 1
    if not several:
        return None
    return (
        "several NATS servers are known, and kv.replicas is 1: each bucket is on one of them only (--set kv.replicas=3)"
    )
