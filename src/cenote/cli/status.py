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
            if check.hint is not None:
                print(f"    → {printable(check.hint)}")
    return _EXITS[found.verdict.value]


async def _health(config: "Config") -> "Health":
    from cenote.cli.reach import opened

    async with opened(config) as (store, _):
        return await store.health()


def _print(found: dict[str, Any]) -> None:
    for name, text in lines(found):
        print(f"{name:10}{text}")


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What was found, as names and texts: one line each."""
    verdict = found["verdict"]
    told = [("verdict", coloured(verdict, COLOURS.get(verdict, "yellow")))]
    for check in found["checks"]:
        told.append(("", f"{check['name']}: {printable(check['reason'])}"))
        told += [("", f"  → {printable(check['hint'])}")] if check.get("hint") else []
    told += [("data", found["data_dir"])] if found["data_dir"] else []
    told += [(name, _server(server)) for name, server in found["servers"].items()]
    process = found["process"]
    told += [("process", f"pid {process} serves" if process else "none serves")] if found["data_dir"] else []
    told += [("dashboard", found["admin"])] if found.get("admin") else []
    if found["store"] is not None:
        told += _flow(found)
    return told + [("warning", coloured(text, "yellow")) for text in found["warnings"]]


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
        *(("", f"{printable(one['agent'])}: {one['dirty']} keys, the oldest {one['oldest_ms']} ms") for one in
          found["lagging"]),
        ("lag", f"{lag} ms (p50 / p95 / p99), {stats['violations']} violations"),
        *_windows(stats),
        ("flushed", f"{stats['flushed']} rows in {stats['commits']} commits, {stats['evicted']} evicted, "
                    f"{stats['quarantined']} quarantined"),
        ("rate", f"{stats['flush_rate']} rows/s, " + _batch(stats["batch_mean"])),
    ]  # fmt: skip


def _windows(stats: dict[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for name in ("1m", "5m"):
        window = stats["windows"][name]
        lag = " / ".join("–" if window[p] is None else f"{window[p]:.1f}" for p in ("p50", "p95", "p99"))
        lines.append(("", f"{name}: {lag} ms of {window['count']} writes, {window['violations']} violations"))
    return lines


def _batch(mean: float | None) -> str:
    return "no commit in the last minute" if mean is None else f"{mean} rows a commit"
