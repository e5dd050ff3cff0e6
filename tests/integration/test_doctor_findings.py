"""What `doctor` finds on servers that are ill: each with what to type (flow rules 4, 5, 8, 14, 17, 22)."""

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cli_run import Cli, urls
from kv_server import USER, KvServer, running

import cenote
from cenote.cli import examine_kv, examine_sql
from cenote.testing import TestServers
from witness import reached

ACCOUNT = "accounts { SMALL { jetstream { max_file: 67108864 }, users: [ { user: small, password: secret } ] } }"


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[KvServer]:
    with running(tmp_path, getattr(request, "param", "")) as started:
        yield started


class Ill:
    """A store on a NATS of its own, the session's PostgreSQL, and the command line of both."""

    def __init__(self, server: KvServer, servers: TestServers, capture: pytest.CaptureFixture[str]) -> None:
        self.servers = servers
        self.namespace = servers.fresh()["namespace"]
        self.settings: dict[str, Any] = {
            "kv": server.url, "kv__user": USER, "kv__password": server.password, "sql": servers.sql_dsn,
            "sql__migrate": "auto", "namespace": self.namespace, "flush__drain_ms": 2000,
        }  # fmt: skip
        self.login = server.url.replace("//", f"//{USER}:{server.password}@")
        self._capture = capture

    async def doctor(self, *options: str, kv: str | None = None, sql: str | None = None) -> dict[str, dict[str, Any]]:
        """The findings by name; of several of one name the last."""
        where = ["--kv", kv or self.login, "--sql", sql or self.servers.sql_dsn, "--namespace", self.namespace]
        answer = await asyncio.to_thread(Cli(self._capture, [*where, *options]), "doctor", "--json")
        return {check["name"]: check for check in answer.json["checks"]} | {"code": {"grade": str(answer.code)}}


@pytest.fixture
def ill(server: KvServer, cenote_servers: TestServers, capsys: pytest.CaptureFixture[str]) -> Ill:
    return Ill(server, cenote_servers, capsys)


def grade(findings: dict[str, dict[str, Any]], name: str) -> str:
    """How a finding is meant; what is not well names what to type."""
    assert findings[name]["grade"] in ("ok", "skipped") or findings[name]["type"], name
    return str(findings[name]["grade"])


async def test_a_second_nats_and_a_second_stream(ill: Ill) -> None:
    async with cenote.open(**ill.settings) as store:
        await store.agent("a").put("k", 1, durability="sql")
        store_id = store._core.epochs.store_id
    well = await ill.doctor()
    assert {grade(well, name) for name in ("store", "history", "storage", "fill", "formats")} == {"ok"}
    assert well["code"]["grade"] == "0"
    elsewhere = await ill.doctor(kv=urls(ill.servers)[1])
    assert grade(elsewhere, "store") == "failed"
    assert store_id in elsewhere["store"]["found"]
    assert "cenote adopt" in elsewhere["store"]["type"]
    assert elsewhere["code"]["grade"] == "2"


@pytest.mark.judge
async def test_a_second_database(ill: Ill) -> None:
    """The stream names a store that this database does not know."""
    async with cenote.open(**ill.settings) as store:
        store_id = store._core.epochs.store_id
    link = await asyncpg.connect(ill.servers.sql_dsn)
    await link.execute(f'DELETE FROM "{ill.namespace}_agents".epochs')
    await link.close()
    found = await ill.doctor()
    assert grade(found, "store") == "failed"
    assert store_id in found["store"]["found"]
    assert "cenote adopt" in found["store"]["type"]


@pytest.mark.judge
async def test_a_nats_that_went_back_in_time(ill: Ill, server: KvServer, tmp_path: Path) -> None:
    async with cenote.open(**ill.settings) as store:
        await store.agent("a").put("k", 0, durability="sql")
        shutil.copytree(tmp_path / "store", tmp_path / "older")
        for number in range(20):
            await store.agent("a").put("k", number)
        await store.flush(10)
    server.kill()
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "older").rename(tmp_path / "store")
    server.start()
    found = await ill.doctor()
    assert grade(found, "history") == "failed"
    assert "NATS went back" in found["history"]["found"]
    assert "cenote serve" in found["history"]["type"]


@pytest.mark.judge
async def test_a_postgresql_that_went_back_in_time(ill: Ill) -> None:
    """A dump is restored: the last commits are gone, and nothing else tells."""
    async with cenote.open(**ill.settings) as store:
        for number in range(5):
            await store.agent("a").put("k", number, durability="sql")

        async def remembered() -> bool:
            board = await store._machines.lease.read()
            return board is not None and board.sql_commits >= 5

        await reached(remembered, "NATS remembers the commits")
    link = await asyncpg.connect(ill.servers.sql_dsn)
    await link.execute(f'UPDATE "{ill.namespace}_agents".flush_head SET number = number - 3')
    await link.close()
    found = await ill.doctor()
    assert grade(found, "history") == "failed"
    assert "PostgreSQL went back" in found["history"]["found"]


async def test_entries_of_a_newer_format_and_of_nobody(ill: Ill) -> None:
    async with cenote.open(**ill.settings) as store:
        core, agent = store._core, store.agent("a")
        for key, header in (("newer", b"Cenote: 99;whatever\r\n"), ("nobody's", b"")):
            await core.stream.publish(agent._target(key).wire, header, b"1", 5000)

        async def met() -> bool:
            board = await store._machines.lease.read()
            return board is not None and board.unknown_formats > 0 and board.quarantined > 0

        await reached(met, "the flusher has met both")
        found = await ill.doctor()
    assert grade(found, "formats") == "failed"
    assert "pip install --upgrade cenote" in found["formats"]["type"]
    assert grade(found, "dead letters") == "warning"
    assert found["dead letters"]["type"] == "cenote dead-letters list"


@pytest.mark.judge
@pytest.mark.parametrize("server", [ACCOUNT], ids=["an account of 64 MiB"], indirect=True)
async def test_a_full_stream_and_a_full_account(ill: Ill, server: KvServer) -> None:
    small = {"kv__user": "small", "kv__password": "secret", "kv__bytes_max": 47 * 1024 * 1024}
    idle = {"flush__enabled": False, "flush__drain_ms": 0}
    login = server.url.replace("//", "//small:secret@")
    async with cenote.open(**ill.settings | small | idle) as store:
        bulky = "".join(map(chr, range(0x4E00, 0x4E00 + 20_000))) * 7
        number = 0
        with pytest.raises(cenote.BackpressureError):
            for number in range(1_000):
                await store.agent("a").put(f"k{number}", bulky + str(number))
        assert number > 10
    found = await ill.doctor(kv=login)
    assert grade(found, "fill") == "failed"
    assert "nats stream edit" in found["fill"]["type"]
    assert grade(found, "storage") == "warning"
    assert "max_file" in found["storage"]["type"]
    assert grade(found, "flusher") == "failed"


@pytest.mark.parametrize(("module", "name"), [(examine_kv, "clock of nats"), (examine_sql, "clock of sql")])
async def test_clocks_that_differ(ill: Ill, module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ahead:
        """This machine's clock, ahead by five seconds."""

        @staticmethod
        def time_ns() -> int:
            return time.time_ns() + 5_000_000_000

    async with cenote.open(**ill.settings):
        pass  # the servers' clocks are told with the answers about its buckets
    monkeypatch.setattr(module, "time", Ahead)
    found = await ill.doctor()
    assert grade(found, name) == "warning"
    assert "chrony" in found[name]["type"]
