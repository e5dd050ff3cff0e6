"""What `status` knows: the servers, the store, and who flushes it."""

from contextlib import suppress
from dataclasses import asdict
from typing import Any

from cenote.cli import daemon
from cenote.cli.greeting import cluster_warning
from cenote.cli.reach import Reach, data_dir, embedded_names, opened
from cenote.config import Config
from cenote.embedded import inspect
from cenote.engine.lease import Board
from cenote.engine.monitor import Stats
from cenote.engine.slots import together
from cenote.errors import CenoteError

_LAGGING = 3  # agents that are named


def stopped(config: Config) -> dict[str, Any]:
    """Embedded servers that do not all run; nothing is started to look at them."""
    directory = data_dir(config)
    found = (None if directory is None else inspect(directory)) or {}
    servers = {
        name: found.get(name) if (found.get(name) or {}).get("alive") else None for name in embedded_names(config)
    }
    return nothing(config, "stopped", "not running; start them: cenote up --detach") | {"servers": servers}


def nothing(config: Config, verdict: str, reason: str, hint: str | None = None) -> dict[str, Any]:
    """What there is to say while no store is open."""
    return {
        **_frame(config),
        "verdict": verdict,
        "servers": {},
        "checks": [{"name": "servers", "verdict": verdict, "reason": reason, "hint": hint}],
        "store": None,
        "stats": None,
        "flusher": None,
        "lagging": [],
        "warnings": [],
    }


async def look(config: Config) -> dict[str, Any]:
    """Everything. Raises what opening a store raises."""
    async with opened(config) as reach:
        return await seen(config, reach)


async def seen(config: Config, reach: Reach) -> dict[str, Any]:
    """The same through a store that is open already: it answers while servers are down, and says which."""
    health = await reach.store.health()
    stats, board, lagging = None, None, []
    with suppress(CenoteError):  # the verdict says it already
        stats, board = await reach.store.stats(), await reach.machines.lease.read()
        board = board and await together(reach.machines.core, board)
        lagging = await reach.store.lagging(_LAGGING) if stats.dirty_entries else []
    checks = [asdict(check) | {"verdict": check.verdict.value} for check in health.checks]
    effective = reach.machines.core.config
    warning = await cluster_warning(effective)
    return {
        **_frame(config),
        "verdict": health.verdict.value,
        "servers": _servers(config, reach),
        "checks": checks,
        "store": _store(reach),
        "stats": None if stats is None else asdict(stats),
        "flusher": _flusher(stats, board),
        "lagging": [asdict(agent) for agent in lagging],
        "warnings": [] if warning is None else [warning],
    }


def _frame(config: Config) -> dict[str, Any]:
    directory = data_dir(config) if embedded_names(config) else None
    serving = None if directory is None else daemon.recorded(directory)
    return {
        "data_dir": None if directory is None else str(directory),
        "process": None if serving is None else serving.pid,
        "admin": None if directory is None else daemon.admin(directory),
    }


def _servers(config: Config, reach: Reach) -> dict[str, Any]:
    core = reach.machines.core
    sql_version = core.db.server_version
    servers = {
        "nats": {"address": str(core.config.kv.url), "version": ".".join(map(str, core.link.server_version))},
        "postgres": {
            "address": str(core.config.sql.url),
            "version": None if sql_version is None else str(sql_version[0]),
        },
    }
    ours = reach.store.servers or {}
    return {name: ours.get(name) or server for name, server in servers.items()}


def _store(reach: Reach) -> dict[str, Any]:
    epochs = reach.machines.core.epochs
    return {"namespace": reach.store.config.namespace, "id": epochs.store_id, "epoch": epochs.newest}


def _flusher(stats: Stats | None, board: Board | None) -> dict[str, Any] | None:
    if stats is None or board is None or not stats.flusher:
        return None
    return {"id": board.holder, "pid": board.pid, "host": board.host, "sql_down_since_ms": board.sql_down_since_ms}
