"""`status`, `health`: how the store is doing. They look, and start nothing."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from cenote.cli.options import SERVERS, Common, command
from cenote.cli.output import coloured, print_json, printable

if TYPE_CHECKING:
    from cenote.config import Config
    from cenote.health import Health

app = typer.Typer()

_EXITS = {"healthy": 0, "degraded": 1, "unhealthy": 2}
COLOURS = {"healthy": "green", "degraded": "yellow", "unhealthy": "red"}


@command(app, "status", panel=SERVERS)
def status(common: Common) -> int:
    """Show the servers, the flow from KV to SQL, and a verdict.

    Exit code 0 healthy, 1 degraded or not running, 2 unhealthy.
    """
    from cenote.cli.looking import look, stopped
    from cenote.cli.reach import embedded_names, running, wait

    config = common.load(flush__enabled=False)
    found = stopped(config) if embedded_names(config) and running(config) is None else wait(look(config))
    if common.json:
        print_json(found)
    else:
        _print(found)
    return _EXITS.get(found["verdict"], 1)


@command(app, "health", panel=SERVERS)
def health(common: Common) -> int:
    """Print a verdict with its reasons; for load balancers and scripts. Exit code 0, 1 or 2."""
    from cenote.cli.reach import must_run, wait

    config = common.load(flush__enabled=False)
    must_run(config)
    found = wait(_health(config))
    if common.json:
        checks = [asdict(check) | {"verdict": check.verdict.value} for check in found.checks]
        print_json({"verdict": found.verdict.value, "checks": checks})
    else:
        print(coloured(found.verdict.value, COLOURS[found.verdict.value]))
        for check in found.checks:
            print(f"  {check.name}: {check.verdict.value} ({printable(check.reason)})")
    return _EXITS[found.verdict.value]


async def _health(config: "Config") -> "Health":
    from cenote.cli.reach import opened

    async with opened(config) as (store, _):
        return await store.health()


def _print(found: dict[str, Any]) -> None:
    verdict = found["verdict"]
    lines = [("verdict", coloured(verdict, COLOURS.get(verdict, "yellow")))]
    lines += [("", f"{check['name']}: {check['reason']}") for check in found["checks"]]
    lines += [("data", found["data_dir"])] if found["data_dir"] else []
    lines += [(name, _server(server)) for name, server in found["servers"].items()]
    process = found["process"]
    lines.append(("process", f"pid {process} serves" if process else "none serves")) if found["data_dir"] else None
    if found["store"] is not None:
        lines += _flow(found)
    lines += [("warning", coloured(text, "yellow")) for text in found["warnings"]]
    for name, text in lines:
        print(f"{name:10}{text}")


def _server(server: dict[str, Any] | None) -> str:
    if server is None:
        return "not running"
    parts = [str(server["address"]), server.get("version") and f"version {server['version']}"]
    if server.get("pid"):
        state = "" if server.get("alive", True) else ", dead"
        parts += [f"pid {server['pid']}{state}", f"{server['restarts']} restarts"]
    return ", ".join(part for part in parts if part)


def _flow(found: dict[str, Any]) -> list[tuple[str, str]]:
    store, stats, flusher = found["store"], found["stats"], found["flusher"]
    lines = [("store", f"{store['namespace']}, epoch {store['epoch']}, id {store['id']}")]
    if flusher is None:
        lines.append(("flusher", "none"))
    else:
        lines.append(("flusher", f"{flusher['id']}, pid {flusher['pid']} on {flusher['host']}"))
    if stats is None:
        return lines
    rows = "unknown" if stats["sql_rows"] is None else stats["sql_rows"]
    lag = " / ".join(
        "–" if stats[f"lag_ms_{p}"] is None else f"{stats[f'lag_ms_{p}']:.1f}" for p in ("p50", "p95", "p99")
    )
    lost = stats["sql_commits_lost"]
    return [
        *lines,
        ("kv", f"{stats['kv_entries']} entries, {stats['kv_bytes']} bytes, {stats['kv_fill']:.1%} full"),
        ("sql", f"{rows} rows" + (f", {lost} commits lost" if lost else "")),
        ("dirty", f"{stats['dirty_entries']} entries, the oldest {stats['oldest_dirty_ms']} ms"),
        ("lag", f"{lag} ms (p50 / p95 / p99), {stats['violations']} violations"),
        ("flushed", f"{stats['flushed']} rows in {stats['commits']} commits, {stats['evicted']} evicted, "
                    f"{stats['quarantined']} quarantined"),
    ]  # fmt: skip
