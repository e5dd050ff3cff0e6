"""What Prometheus reads, and what asks it: every rule and every graph of ours, on a real Prometheus."""

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from cli_run import Cli
from damage import row_lost
from starlette.applications import Starlette
from test_metrics import scraped
from test_outages import port

import cenote
from cenote import dashboard
from cenote.store import Store
from cenote.telemetry import alerts, grafana
from cenote.testing import FaultProxy, TestServers
from witness import reached, tables

HOSTILE = 'quote" and \\ and \n'
_METRIC = re.compile(r"cenote_[a-z0-9_]+")
_COMPARED = re.compile(r" (>|<|==|>=|<=|!=) ")


def expressions() -> list[str]:
    """With `bool` behind each comparison of a rule: then it is 0 or 1 where it would be nothing or something."""
    graphs = [query.replace("$__rate_interval", "1m") for panel in grafana.PANELS for query, _ in panel.queries]
    return [*(_COMPARED.sub(r" \1 bool ", rule.expr) for rule in alerts.RULES), *graphs]


async def used(store: Store) -> None:
    """Something of each kind has happened: a meeting of two writes too."""
    agent = store.agent(HOSTILE)
    await asyncio.gather(*(agent.put("tags", cenote.ORSet({name})) for name in "abc"))
    await agent.put_many({f"k{number}": number for number in range(40)})
    await agent.get("k1")
    await agent.get("nothing")
    await store.flush(20)


async def test_every_query_names_what_is_told(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        await used(store)
        await row_lost(store, sql, store.agent(HOSTILE), ["k1", "k2"])
        assert (await store.repair(dry_run=True)).found == {"sql_missing": 2}
        assert (await store.repair()).mended == {"sql_missing": 2}
        told = await scraped(store)
        assert told["cenote_repairs_total", (("kind", "sql_missing"),)] == 2
        assert told["cenote_repair_differences_total", (("kind", "sql_missing"),)] == 2
        wanted = {name for query in expressions() for name in _METRIC.findall(query)}

        async def missing() -> set[str]:
            return wanted - {name for name, _ in await scraped(store)}

        async def all_told() -> bool:
            return not await missing()

        with contextlib.suppress(AssertionError):
            await reached(all_told, "a flusher that has told how it goes", within_s=10)
        assert await missing() == set()
        assert "quote" not in str(told), "an agent is a label"


async def test_what_a_process_without_servers_tells(cenote_servers: TestServers) -> None:
    async with FaultProxy(port(cenote_servers, "nats")) as kv, FaultProxy(port(cenote_servers, "postgres")) as sql:
        settings = cenote_servers.by_url(
            kv_port=kv.port, sql_port=sql.port, kv__outage_after_ms=100, sql__outage_after_ms=100, flush__drain_ms=0
        )
        async with cenote.open(**settings) as store:
            await used(store)
            kv.cut(), sql.cut()
            servers = ("nats", "postgresql")

            async def both() -> bool:
                told = await scraped(store)
                return all(told["cenote_server_out", (("server", name),)] == 1 for name in servers)

            await reached(both, "both servers told of as out")
            told = await scraped(store)
            assert told["cenote_health", (("check", "jetstream"),)] == 2
            assert told["cenote_consistency_lag_seconds_count", ()] >= 41
            assert ("cenote_dirty_keys", ()) not in told, "nobody can know"


def installed(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(one) for one in command], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_the_rules_and_they_fire(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    installed("promtool")
    (tmp_path / "alerts.yml").write_text(Cli(capsys, [])("alerts").out)
    assert f"{len(alerts.RULES)} rules found" in run("promtool", "check", "rules", "alerts.yml", cwd=tmp_path)
    fires: dict[str, dict[str, str]] = {
        "CenoteUnflushedWritesAreOld": {"cenote_oldest_dirty_age_seconds": "0 6x10"},
        "CenoteNobodyFlushes": {"cenote_flusher_active": "0x10", "cenote_dirty_keys": "1x10"},
        "CenoteBacklogNearItsLimit": {"cenote_dirty_keys": "9x10", "cenote_backlog_limit": "10x10"},
        "CenoteNatsIsAway": {'cenote_health{check="jetstream"}': "2x10"},
        "CenotePostgresqlWentBack": {"cenote_sql_commits_lost_total": "0 0 3x8"},
        "CenoteFlushesFail": {'cenote_flush_errors_total{error="UnavailableError"}': "0+5x20"},
        "CenoteLagIsHigh": {
            'cenote_consistency_lag_window_seconds{window="1m",quantile="0.95"}': "0.6x20",
            "cenote_consistency_window_seconds": "0.5x20",
        },
        "CenoteWritesAreLate": {
            "cenote_consistency_violations_total": "0+10x30", "cenote_flushed_rows_total": "0+100x30",
        },
        "CenoteDifferencesAreLeft": {
            'cenote_repair_differences_total{kind="blob_missing"}': "1x10",
            'cenote_repairs_total{kind="blob_missing"}': "0x10",
        },
        "CenotePoolIsExhausted": {"cenote_pool_acquire_timeouts_total": "0+1x20", "cenote_pool_wait_seconds": "0x20"},
    }  # fmt: skip
    rules = {rule["alert"]: rule for rule in alerts.document()["groups"][0]["rules"]}
    quiet = {"cenote_flusher_active": "1x20", "cenote_dirty_keys": "5x20", "cenote_oldest_dirty_age_seconds": "0.1x20"}
    cases = [
        {
            "interval": "1m", "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": [{
                "eval_time": "15m" if rules[name]["for"] in ("5m", "10m") or "Pool" in name else "8m",
                "alertname": name,
                "exp_alerts": [] if series is quiet else [
                    {"exp_labels": rules[name]["labels"], "exp_annotations": rules[name]["annotations"]}
                ],
            }],
        }
        for name, series in [*fires.items(), ("CenoteNobodyFlushes", quiet), ("CenoteUnflushedWritesAreOld", quiet)]
    ]  # fmt: skip
    document = {"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "tests.yml").write_text(json.dumps(document))
    assert "SUCCESS" in run("promtool", "test", "rules", "tests.yml", cwd=tmp_path)


def test_what_the_commands_print(capsys: pytest.CaptureFixture[str]) -> None:
    cli = Cli(capsys, [])
    assert cli("alerts", "--json").json == alerts.document()
    assert cli("grafana").json == cli("grafana", "--json").json == grafana.document()
    assert len({panel["id"] for panel in grafana.document()["panels"]}) == len(grafana.PANELS)


# --- a real one ---------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def served(store: Store) -> AsyncIterator[int]:
    """The store's probes over HTTP; the port."""
    config = uvicorn.Config(Starlette(routes=dashboard.routes(store)), port=0, log_level="warning")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await reached(lambda: server.started, "a server")
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


@contextlib.contextmanager
def prometheus(directory: Path, target: int, at: int) -> Iterator[str]:
    """A Prometheus that asks this port each second, with our rules; its address."""
    (directory / "alerts.yml").write_text(alerts.yaml())
    config: dict[str, Any] = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": ["alerts.yml"],
        "scrape_configs": [{"job_name": "cenote", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }  # fmt: skip
    (directory / "prometheus.yml").write_text(json.dumps(config))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{at}",
             f"--storage.tsdb.path={directory / 'data'}"],
            cwd=directory, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{at}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.judge
async def test_every_query_returns_a_series_under_load(
    cenote_servers: TestServers, tmp_path: Path, unused_tcp_port: int
) -> None:
    """Every rule and every graph; and the rule for dead letters fires."""
    installed("prometheus")
    async with cenote.open(**cenote_servers.fresh()) as store, served(store) as target:
        await used(store)
        stop = asyncio.Event()

        async def load() -> None:
            agent, number = store.agent("load"), 0
            while not stop.is_set():
                number += 1
                await agent.put(f"k{number % 100}", number)
                await agent.get(f"k{number % 150}")
                if number % 20 == 0:
                    await asyncio.gather(*(agent.put("tags", cenote.ORSet({name})) for name in "abc"))

        loading = asyncio.create_task(load())
        try:
            with prometheus(tmp_path, target, unused_tcp_port) as address:
                async with httpx.AsyncClient(base_url=address) as client:

                    async def empty() -> list[str]:
                        left = []
                        for query in expressions():
                            answer = await client.get("/api/v1/query", params={"query": query})
                            assert answer.status_code == 200, answer.text
                            found = answer.json()["data"]["result"]
                            if not found or any(one["value"][1] == "NaN" for one in found):
                                left.append(query)
                        return left

                    async def ready() -> bool:
                        try:
                            return (await client.get("/-/ready")).status_code == 200
                        except httpx.TransportError:
                            return False

                    async def answers() -> bool:
                        return not await empty()

                    await reached(ready, "a Prometheus", within_s=60)
                    try:
                        await reached(answers, "a series for every query", within_s=60)
                    except AssertionError:
                        assert await empty() == []
                    store._core.link.send(store._core.target(store.agent("a")._agent, "k").wire, b"", b"junk")

                    async def fires() -> bool:
                        found = (await client.get("/api/v1/alerts")).json()["data"]["alerts"]
                        return any((one["labels"]["alertname"], one["state"]) == ("CenoteDeadLetters", "firing")
                                   for one in found)  # fmt: skip

                    await reached(fires, "the alert for a dead letter", within_s=30)
        finally:
            stop.set()
            await loading
