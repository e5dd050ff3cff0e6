"""Nobody is told a name that the runbook does not explain, and the runbook tells nobody to type what does not exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cenote import errors, naming
from cenote.cli.app import app
from cenote.config import Config, shown
from cenote.telemetry import alerts, runbook

SOURCE = Path(errors.__file__).parent
FINDINGS = {"ok", "skipped", "warning", "failed"}
CODE = re.compile(r"`(cenote [^`]+)`")
SETTING = re.compile(r"`([a-z]+\.[a-z_]+)(?: = [^`]*|=[^`]*)?`")


def first_arguments(pattern: str, calls: set[str]) -> Iterator[str | None]:
    """The text that is the first argument of these calls; None where it is no text but a name for one."""
    for path in sorted(SOURCE.glob(pattern)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in calls:
                first = node.args[0]
                yield first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def wanted() -> dict[str, set[str]]:
    """Every name that somebody may be told, by who tells it."""
    doctor = set(first_arguments("cli/examine_*.py", FINDINGS))
    assert None in doctor, "some lines of doctor have names that are not written where they are told: see below"
    return {
        "alerts": {rule.name for rule in alerts.RULES},
        "health": {name for name in first_arguments("health/*.py", {"Check"}) if name is not None},
        "doctor": {name for name in doctor if name is not None}
        | {"nats-server", naming.AGENT_STATE, naming.SESSION_DATA, naming.QUERY_CACHE},
        "errors": {
            name
            for name, kind in vars(errors).items()
            if isinstance(kind, type) and issubclass(kind, errors.CenoteError)
        },
    }


def test_the_names_are_found() -> None:
    """What reads them from the code still does."""
    found = wanted()
    assert len(found["alerts"]) >= 12
    assert {"jetstream", "postgresql", "consistency", "dead letters", "disk", "pool"} <= found["health"]
    assert {"store", "history", "rights", "vectors", "free space", "clock of nats"} <= found["doctor"]
    assert len(found["errors"]) >= 18
    assert sum(name is None for name in first_arguments("cli/examine_*.py", FINDINGS)) == 6
    assert None not in set(first_arguments("health/*.py", {"Check"}))


@pytest.mark.parametrize("who", ["alerts", "health", "doctor", "errors"])
def test_every_name_has_its_section(who: str) -> None:
    assert wanted()[who] <= set(runbook.sections())


def test_every_section_is_of_something_and_says_how_to_look_and_what_to_do() -> None:
    known = set().union(*wanted().values())
    sections = runbook.sections()
    assert len(sections) == runbook.text().count("\n### ")
    assert set(sections) == known
    for name, said in sections.items():
        cause, look, do = re.split(r"\n- \*\*(?:Look|Do):\*\* ", said)
        assert cause.strip(), name
        assert look.strip(), name
        assert do.strip(), name


def test_what_it_tells_to_type_exists() -> None:
    root: Any = typer.main.get_command(app)
    seen = 0
    for command in CODE.findall(runbook.text().replace("\n", " ")):
        words = command.split()[1:]
        found, path = root, []
        while words and hasattr(found, "commands"):
            if words[0] == "COMMAND":
                break
            assert words[0] in found.commands, command
            path.append(words[0])
            found = found.commands[words.pop(0)]
        options = {option for parameter in found.params for option in parameter.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= options, command
        if path == ["explain"] and words != ["NAME"]:
            assert runbook.section(" ".join(words)) is not None, command
        seen += 1
    assert seen > 100


def test_the_settings_that_it_names_exist() -> None:
    known = set(shown(Config()))
    named = {
        name
        for name in SETTING.findall(runbook.text())
        if name.partition(".")[0] in {k.partition(".")[0] for k in known}
    }
    assert len(named) > 12
    assert named <= known


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        ("CenoteNobodyFlushes", 0, "cenote serve"),
        ("notdurableerror", 0, "NotDurableError\n\n"),
        ("Dead Letters", 0, "cenote dead-letters list"),
    ],
)
def test_a_section_is_printed(asked: str, code: int, said: str) -> None:
    done = CliRunner().invoke(app, ["explain", asked], standalone_mode=False)
    assert done.return_value == code
    assert said in done.stdout


def test_who_misspells_a_name_is_told_what_may_be_meant() -> None:
    done = CliRunner().invoke(app, ["explain", "NotDurable"], standalone_mode=False)
    assert isinstance(done.exception, errors.CenoteError)
    assert "NotDurableError" in str(done.exception)
    assert runbook.similar("clock")
