"""The command line as a test uses it: run in this process, with what it printed and its exit code."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from cenote.cli.run import run
from cenote.embedded.login import dsn
from cenote.embedded.nats_server import USER
from cenote.embedded.state import DataDir
from cenote.testing import TestServers


@dataclass(frozen=True)
class Answer:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Cli:
    """Commands of one store."""

    capture: pytest.CaptureFixture[str]
    options: list[str] = field(default_factory=list)

    def __call__(self, *arguments: str, options: list[str] | None = None) -> Answer:
        self.capture.readouterr()
        given = list(arguments)
        at = given.index("--") if "--" in given else len(given)
        given[at:at] = self.options if options is None else options
        code = run(given)
        printed = self.capture.readouterr()
        assert "Traceback" not in printed.err
        return Answer(code, printed.out, printed.err)


def urls(servers: TestServers, **wrong: str) -> list[str]:
    """Options that reach the embedded servers of the session as somebody else's would be reached."""
    state = DataDir(servers.data_dir).load()
    assert state is not None
    kv = f"nats://{USER}:{wrong.get('kv_password', state.nats_password)}@127.0.0.1:{state.nats_port}"
    sql = dsn(state).replace(state.sql_password, wrong.get("sql_password", state.sql_password))
    return ["--kv", kv, "--sql", sql]
