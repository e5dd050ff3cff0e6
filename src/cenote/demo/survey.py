"""What an agent finds out about one module of the standard library: source in, steps out, nothing else touched.

The steps of a source are always the same, in the same order. That is what lets another process go on where a killed
one stopped.
"""

import ast
import hashlib
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_LEFT_OUT = {
    "test", "tests", "idlelib", "lib2to3", "turtledemo", "lib-dynload", "site-packages", "dist-packages", "__pycache__",
}  # fmt: skip
_BRANCHES = (ast.If, ast.For, ast.While, ast.Try, ast.With, ast.BoolOp, ast.IfExp, ast.Match, ast.comprehension)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Module(NamedTuple):
    """A module of the standard library and where its source lies."""

    name: str
    path: Path


class Step(NamedTuple):
    """One finding: the key it is kept under, and the value."""

    key: str
    value: Any

    @property
    def kind(self) -> str:
        """What sort of finding it is."""
        return self.key.partition("/")[0]


def modules(count: int | None = None) -> list[Module]:
    """The first `count` modules of this Python's standard library, top-level ones first; fewer if it has fewer; None:
    all of them."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[Module] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and name.isidentifier()]
        inside = Path(folder).relative_to(root).parts
        for file in files:
            stem, ending = os.path.splitext(file)
            if ending == ".py" and stem.isidentifier():
                parts = inside if stem == "__init__" and inside else (*inside, stem)
                found.append(Module(".".join(parts), Path(folder, file)))
    return sorted(found, key=lambda module: (module.name.count("."), module.name))[:count]


def steps(source: bytes) -> list[Step]:
    """Everything that an agent writes down about a module, in order."""
    text = source.decode("utf-8", "replace")
    tree = ast.parse(source)
    defined = list(_definitions(tree))
    found = [
        Step("source", {"text": text, "bytes": len(source), "sha256": hashlib.sha256(source).hexdigest()}),
        Step("imports", sorted(_imports(tree))),
    ]
    for node in defined:
        found.append(Step(f"outline/{node.name}", _outline(node)))
        if doc := ast.get_docstring(node):
            found.append(Step(f"docs/{node.name}", {"summary": doc.partition("\n")[0], "text": doc}))
        if not isinstance(node, ast.ClassDef):
            found.append(Step(f"metrics/{node.name}", _metrics(node)))
    questions = _questions(text, defined)
    found += [Step(f"questions/{number:03}", question) for number, question in enumerate(questions, 1)]
    kinds = Counter(step.kind for step in found)
    found.append(Step("report", {"doc": ast.get_docstring(tree), "lines": text.count("\n"), "findings": dict(kinds)}))
    return found


def _imports(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def _definitions(node: ast.AST) -> Iterator[Definition]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield child
        elif isinstance(child, ast.If | ast.Try):
            yield from _definitions(child)


def _outline(node: Definition) -> dict[str, Any]:
    place = {"kind": type(node).__name__.removesuffix("Def"), "line": node.lineno, "end_line": node.end_lineno}
    if isinstance(node, ast.ClassDef):
        methods = [{"name": one.name, "line": one.lineno, "takes": ast.unparse(one.args)}
                   for one in _definitions(node) if not isinstance(one, ast.ClassDef)]  # fmt: skip
        return place | {"bases": [ast.unparse(base) for base in node.bases], "methods": methods}
    return place | {"takes": ast.unparse(node.args), "gives": ast.unparse(node.returns) if node.returns else None}


def _metrics(node: Definition) -> dict[str, Any]:
    nodes = list(ast.walk(node))
    names = Counter(one.id for one in nodes if isinstance(one, ast.Name))
    return {
        "lines": (node.end_lineno or node.lineno) - node.lineno + 1,
        "nodes": len(nodes),
        "branches": sum(isinstance(one, _BRANCHES) for one in nodes),
        "share_of_names": round(names.total() / len(nodes), 4),
        "names": dict(names.most_common(5)),
    }


def _questions(text: str, defined: list[Definition]) -> Iterator[dict[str, Any]]:
    """What the source leaves open: public definitions that nobody described, and comments that ask."""
    for node in defined:
        if not node.name.startswith("_") and ast.get_docstring(node) is None:
            yield {"line": node.lineno, "about": node.name, "asks": f"What is {node.name} for?"}
    for number, line in enumerate(text.splitlines(), 1):
        _, mark, comment = line.partition("# ")
        if mark and comment.endswith("?"):
            yield {"line": number, "about": "comment", "asks": comment.strip()}
