"""What a serving process logs as JSON: one object a line, whatever happens, and nobody's value or password in it."""

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from test_outages import port

import cenote
from cenote.cli.logs import JsonLines, LogFormat, log_to_stderr
from cenote.testing import FaultProxy, TestServers
from witness import reached, tables

SECRET = "tell-nobody-7421"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def lines(path: Path) -> list[dict[str, Any]]:
    """Every line that is whole."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


async def test_a_serving_process_in_trouble_logs_json_and_nothing_that_is_secret(
    cenote_servers: TestServers, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with FaultProxy(port(cenote_servers, "postgres")) as way:
        through = cenote_servers.by_url(sql_port=way.port)
        at = through | {"sql": cenote_servers.sql_dsn, "flush__enabled": False, "flush__drain_ms": 0}
        async with cenote.open(**at) as store, tables(cenote_servers, store) as sql:
            rule = f"ALTER TABLE {sql.schema}.state ADD CHECK (value::text NOT LIKE '%{SECRET}%')"
            await sql.link.execute(rule)
            serving = _begin(log, through)
            try:
                await store.agent("ant").put("plan", {"password": SECRET})
                await reached(lambda: _said(log, "quarantined"), "a refused value", within_s=40)
                way.cut()
                await store.agent("ant").put("next", [SECRET[::-1]])
                await reached(lambda: _said(log, "PostgreSQL does not take the flush"), "a server that is away")
                way.heal()
                await store.flush(30)
            finally:
                serving.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(serving.wait, 30) == 0
        found = lines(log)
        assert {line["level"] for line in found} >= {"warning", "error"}
        for line in found:
            assert TIME.fullmatch(line["time"])
            assert line["logger"]
            assert (line["namespace"], line["pid"]) == (through["namespace"], serving.pid)
        assert any("plan" in line["event"] for line in found), "what it is about may be named"
        text = log.read_text()
        passwords = (through["kv__password"], re.findall(r"//\w+:([^@]+)@", cenote_servers.sql_dsn)[0])
        for secret in (SECRET, SECRET[::-1], *passwords):
            assert secret
            assert secret not in text


def _begin(log: Path, settings: dict[str, Any]) -> "subprocess.Popen[bytes]":
    named = {"kv": "kv__url", "sql": "sql__url"}
    given = {f"CENOTE_{named.get(name, name).upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "cenote.cli", "serve", "--log-format", "json"]
    with log.open("wb") as output:
        return subprocess.Popen(command, env=os.environ | given, stdout=subprocess.DEVNULL, stderr=output)


def _said(log: Path, words: str) -> bool:
    return any(words in line["event"] for line in lines(log))


def test_an_exception_is_told_by_its_classes_and_places_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr(LogFormat.JSON, "team"):
        try:
            try:
                raise ValueError(SECRET)
            except ValueError as error:
                raise cenote.UnavailableError("away") from error
        except cenote.UnavailableError:
            logging.getLogger("cenote.engine").exception("two\nlines \x1b[31m")
        logging.getLogger("asyncio").warning("of somebody else")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("of Python", stacklevel=1)
    ours, other, warned = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert ours["errors"] == ["UnavailableError", "ValueError"]
    assert ours["stack"][0].startswith(f"{__name__}:")
    assert (ours["event"], ours["namespace"], ours["logger"]) == ("two\nlines \x1b[31m", "team", "cenote.engine")
    assert SECRET not in str(ours)
    assert (other["logger"], other["event"]) == ("asyncio", "of somebody else")
    assert "of Python" in warned["event"]


@pytest.mark.parametrize("form", list(LogFormat))
def test_what_was_set_before_is_set_again(form: LogFormat) -> None:
    ours, root = logging.getLogger("cenote"), logging.getLogger()
    before = (ours.level, ours.propagate, list(ours.handlers), list(root.handlers))
    with log_to_stderr(form, "team"):
        assert ours.level == logging.INFO
    assert (ours.level, ours.propagate, list(ours.handlers), list(root.handlers)) == before


def test_a_line_is_one_line_whatever_it_says() -> None:
    record = logging.LogRecord("cenote", logging.INFO, "", 0, "a\u2028b %s\r\n", ("\ud800",), None)
    line = JsonLines("team").format(record)
    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert json.loads(line)["event"] == "a\u2028b \ud800\r\n"
