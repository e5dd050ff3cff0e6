"""`top` looks again and again, says what is down, and goes on; it fits a small terminal."""

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_run import Cli, urls

from cenote.cli.top import frame
from cenote.testing import TestServers


@pytest.fixture
def cli(cenote_servers: TestServers, capsys: pytest.CaptureFixture[str]) -> Cli:
    fresh = cenote_servers.fresh()
    return Cli(capsys, ["--data-dir", str(fresh["data_dir"]), "--namespace", fresh["namespace"]])


def test_one_look_tells_what_status_tells(cli: Cli) -> None:
    assert cli("put", "scout", "k", "1").code == 0
    told = cli("top", "--once", "--json").json
    assert told["stats"]["sql_rows"] == 1
    answer = cli("top", "--once")
    assert answer.code == {"healthy": 0, "degraded": 1}[told["verdict"]]
    assert "verdict" in answer.out
    assert "\x1b" not in answer.out  # no terminal, no colour
    small = frame(told, (80, 24)).plain.split("\n")
    assert len(small) < 24
    assert max(map(len, small)) < 80


def test_servers_that_are_not_there_are_told_and_nothing_is_started(
    cli: Cli, cenote_servers: TestServers, tmp_path: Path
) -> None:
    stopped = cli("top", "--once", options=["--data-dir", str(tmp_path)])
    assert stopped.code == 1
    assert "cenote up --detach" in stopped.out
    reached = urls(cenote_servers)
    reached[1] = "nats://127.0.0.1:1"
    away = cli("top", "--once", "--json", options=reached)
    assert away.code == 2
    assert away.json["verdict"] == "unhealthy"
    assert "cannot be reached" in away.json["checks"][0]["reason"]


def test_q_ends_it_and_the_terminal_is_as_before(cli: Cli) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cenote.cli", "top", *cli.options],
        stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
    )  # fmt: skip
    try:
        os.close(theirs)
        shown, until = b"", time.monotonic() + 60
        while b"verdict" not in shown and time.monotonic() < until:
            shown += os.read(ours, 65536)
        assert b"verdict" in shown
        os.write(ours, b"q")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_it_goes_on_looking(cli: Cli) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "cenote.cli", "top", "--json", *cli.options], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert [json.loads(process.stdout.readline())["store"] is not None for _ in range(2)] == [True, True]
        finally:
            process.kill()
