"""The project as the architecture tests see it: its files, its modules, its functions."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
DOTTED = re.compile(r"cenote(\.[a-z_]+)+")


class Module(NamedTuple):
    """One Python file below src/."""

    name: str  # "cenote.kv.link"; a package goes by its own name
    path: Path
    text: str
    tree: ast.Module

    @property
    def where(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def room(self) -> str:
        """The name below `cenote`: "kv", "store", …; empty for the face itself."""
        return self.name.split(".")[1] if "." in self.name else ""


class Function(NamedTuple):
    """One function or method, nested ones included; its decorators are not counted."""

    where: str
    lines: int


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for path in sorted(SRC.rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        found.append(Module(name, path, text, ast.parse(text)))
    return tuple(found)


def functions() -> Iterator[Function]:
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield Function(f"{module.where}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1)


def imports(module: Module) -> Iterator[str]:
    """Every dotted name a module imports: of `from a import b` both `a` and `a.b`."""
    package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def named(module: Module) -> Iterator[str]:
    """Every dotted name that stands in a text, as lazy imports have it."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and DOTTED.fullmatch(str(node.value)):
            yield str(node.value)


@cache
def tracked() -> tuple[Path, ...]:
    """Every file that is, or could be, committed. A checkout that belongs to someone else is still read."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = (ROOT / name for name in listed.split("\0") if name)
    return tuple(path for path in paths if path.is_file())


def pages() -> Iterator[tuple[Path, str]]:
    """Every Markdown page with its text."""
    for path in tracked():
        if path.suffix == ".md":
            yield path, path.read_text(encoding="utf-8")
