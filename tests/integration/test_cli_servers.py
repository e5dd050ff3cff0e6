"""`up`, `down`, `serve`: processes of their own, started and ended as a user would."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_run import urls

from cenote.testing import TestServers

COMMAND = [sys.executable, "-m", "cenote.cli"]


class Outside:
    """The command line from outside, on a data directory of its own."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        # A machine that tests is slow: no round trip to PostgreSQL is to be judged.
        own = {"CENOTE_EMBEDDED__DATA_DIR": str(data_dir), "CENOTE_HEALTH__SQL_MS_MAX": "1000"}
        self.environment = os.environ | own

    def __call__(self, *arguments: str, code: int = 0) -> Any:
        command = [*COMMAND, *arguments, "--json"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return json.loads(done.stdout)

    def begin(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [*COMMAND, *arguments, "--json"]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    cenote = Outside(tmp_path / "data")
    yield cenote
    subprocess.run([*COMMAND, "down"], env=cenote.environment, capture_output=True, timeout=60)


def _first_line(process: "subprocess.Popen[str]") -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "it ended before it was ready"
    return json.loads(line)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def _until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_up_in_the_background_serves_and_down_stops_everything(outside: Outside) -> None:
    begun = outside("up", "--detach")
    assert not begun["already"]
    again = outside("up", "--detach")
    assert (again["already"], again["pid"]) == (True, begun["pid"])
    status = outside("status")
    assert status["verdict"] == "healthy"
    assert status["process"] == status["flusher"]["pid"] == begun["pid"]
    servers = [status["servers"][name]["pid"] for name in ("nats", "postgres")]
    assert all(map(_lives, servers))
    assert outside("put", "scout", "k", "1", "--set", "flush.enabled=false")["durability"] == "kv"
    outside("flush", "--set", "flush.enabled=false")  # the background process does it
    stopped = outside("down")
    assert (stopped["process"], stopped["stopped"], stopped["in_use"]) == (begun["pid"], ["nats", "postgres"], False)
    assert not any(map(_lives, [begun["pid"], *servers]))
    assert outside("down")["stopped"] == []
    assert outside("status", code=1)["verdict"] == "stopped"
    assert outside("get", "scout", "k")["value"] == 1  # a command alone starts the servers, and stops them
    assert outside("status", code=1)["verdict"] == "stopped"


def test_servers_whose_background_process_was_killed_are_stopped_by_down(outside: Outside) -> None:
    begun = outside("up", "--detach")
    servers = [outside("status")["servers"][name]["pid"] for name in ("nats", "postgres")]
    os.kill(begun["pid"], signal.SIGKILL)
    _until(lambda: not _lives(begun["pid"]))
    assert all(map(_lives, servers))
    stopped = outside("down")
    assert (stopped["process"], stopped["stopped"]) == (None, ["nats", "postgres"])
    assert not any(map(_lives, servers))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_up_in_the_foreground_ends_in_order(outside: Outside, number: signal.Signals) -> None:
    process = outside.begin("up")
    ready = _first_line(process)
    assert ready["pid"] == process.pid
    servers = [outside("status")["servers"][name]["pid"] for name in ("nats", "postgres")]
    process.send_signal(number)
    assert process.wait(30) == 0
    process.communicate()
    assert not any(map(_lives, servers))


def test_down_leaves_servers_that_others_use(outside: Outside) -> None:
    outside("up", "--detach")
    watcher = outside.begin("watch", "scout", "--since", "0")
    outside("put", "scout", "k", "1")
    assert _first_line(watcher)["value"] == 1
    stopped = outside("down", code=2)
    assert stopped["in_use"]
    assert stopped["users"] == [watcher.pid]
    watcher.send_signal(signal.SIGINT)
    watcher.communicate(timeout=30)
    assert watcher.returncode == 0
    assert outside("down")["stopped"] == []  # the last user has stopped them


def test_a_start_that_fails_is_told_by_the_one_who_asked(outside: Outside) -> None:
    failed = outside("up", "--detach", "--set", "embedded.nats_bin=/nonexistent", code=2)
    assert "no nats-server at /nonexistent" in failed["error"]["message"]
    assert outside("status", code=1)["process"] is None


def test_secrets_do_not_show_in_the_list_of_processes(outside: Outside) -> None:
    begun = outside("up", "--detach", "--set", "admin.token=hush-hush")
    command_line = Path(f"/proc/{begun['pid']}/cmdline")
    if not command_line.exists():
        pytest.skip("the system has no /proc")
    assert b"cenote.cli" in command_line.read_bytes()
    assert b"hush-hush" not in command_line.read_bytes()


def test_serve_flushes_for_servers_that_are_named_by_url(cenote_servers: TestServers, tmp_path: Path) -> None:
    options = [*urls(cenote_servers), "--namespace", cenote_servers.fresh()["namespace"]]
    outside = Outside(tmp_path / "unused")
    outside("migrate", *options)
    process = outside.begin("serve", *options)
    assert _first_line(process)["data_dir"] is None
    outside("put", "scout", "k", "1", "--set", "flush.enabled=false", *options)
    outside("flush", "--set", "flush.enabled=false", *options)
    assert outside("status", *options)["flusher"]["pid"] == process.pid
    process.terminate()
    assert process.wait(30) == 0
    process.communicate()
    assert not (tmp_path / "unused").exists()
