"""Every rule of the flow has a test with teeth: one that holds, and ends in a violation when its rule is taken out.

A test says which rules it is about in its own docstring or its file's: "flow rule 7", "rules 3 and 4". So
`grep -rn "rule 7" tests` finds it.
"""

import ast
import re
from collections import defaultdict
from functools import cache

import pytest
from sources import ROOT

NO_TEETH = {
    15: "there is no second road into SQL that could be opened",
}
RULES = range(1, 26)
_NAMED = re.compile(r"\brules?\s+(\d+(?:(?:,\s*(?:and\s+)?|\s+and\s+)\d+)*)")


def named(*texts: str | None) -> set[int]:
    """The numbers of the rules that a text names."""
    lists = [found for text in texts if text for found in _NAMED.findall(text)]
    return {int(number) for numbers in lists for number in re.findall(r"\d+", numbers)}


@cache
def toothed_tests() -> dict[int, list[str]]:
    """The tests that end in a Violation when a rule is taken out, by rule."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        for node in module.body:
            if not isinstance(node, ast.AsyncFunctionDef) or not node.name.startswith("test_"):
                continue
            names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
            if names & {"toothed", "Violation"}:  # by the decorator, or a run without the rule in the test itself
                for rule in named(ast.get_docstring(node), ast.get_docstring(module)):
                    found[rule].append(f"{path.name}::{node.name}")
    return found


def test_rules_are_read_from_docstrings() -> None:
    assert named("Flow rules 1, 6 and 16: x", "rule 7", "rules 2, and 3; 9 others", None) == {1, 2, 3, 6, 7, 16}


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in NO_TEETH])
def test_every_rule_has_a_test_with_teeth(rule: int) -> None:
    assert toothed_tests()[rule], f"no test with teeth names rule {rule}"


def test_exceptions_are_still_needed() -> None:
    assert not set(toothed_tests()) & set(NO_TEETH)
