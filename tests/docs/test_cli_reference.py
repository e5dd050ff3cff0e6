"""The generated pages are what the code says now, and leave nothing out."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from cenote import errors
from cenote.cli.app import app
from cenote.config import Config, shown

ROOT = Path(__file__).parents[2]


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_pages", ROOT / "scripts" / "reference_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = _generator()


@pytest.mark.parametrize("name", GENERATOR.PAGES)
def test_a_page_is_what_the_code_says(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert text == GENERATOR.PAGES[name](), "python scripts/reference_pages.py writes it anew"


def test_every_command_and_option_is_described() -> None:
    page = GENERATOR.cli_page()
    root: Any = typer.main.get_command(app)
    commands = dict(GENERATOR._commands(root, "cenote"))
    assert len(commands) >= 20
    for path, command in commands.items():
        assert f"## `{path}`" in page
        assert command.help, f"{path} says nothing about itself"
        for parameter in command.params:
            assert parameter.help or parameter.hidden, f"{path}: {parameter.name} says nothing about itself"
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert f"`{parameter.opts[0]}`" in page


def test_every_setting_is_described() -> None:
    page = GENERATOR.settings_page()
    names = list(shown(Config()))
    assert len(names) >= 40
    for name in names:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert not row.endswith("|  |"), f"{name} says nothing about itself"


def test_every_error_is_described() -> None:
    page = GENERATOR.errors_page()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CenoteError)]
    assert len(kinds) >= 15
    assert not [kind.__name__ for kind in kinds if f"`{kind.__name__}`" not in page]
