"""Small habits that reviews forget: nothing prints, silences have a reason, nothing names a machine."""

import ast
import re

import sources

SILENCE = re.compile(r"# (?:noqa|type: ignore)(?::? ?[A-Z]+[0-9]+(?:, ?[A-Z]+[0-9]+)*|\[[a-z, -]+\])?(.*)")
LATER = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
# Put together here, so that this file does not hold what it forbids.
MACHINES = tuple("".join(parts) for parts in (("/wo", "rk/"), ("/ro", "ot/"), ("py", "pi.org"), ("python", "hosted")))
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "core_utils"}


def _calls(module: sources.Module, name: str) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


def test_only_the_command_line_prints() -> None:
    assert not {m.where: lines for m in sources.modules() if m.room != "cli" and (lines := _calls(m, "print"))}


def test_a_silenced_check_says_why() -> None:
    silent = []
    for path in sources.tracked():
        if path.suffix == ".py":
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                found = SILENCE.search(line)
                if found and len(found[1].strip(" #-:")) < 8 and "re.compile" not in line:
                    silent.append(f"{path.relative_to(sources.ROOT)}:{number}")
    assert not silent


def test_nothing_is_put_off_in_a_comment() -> None:
    assert not [module.where for module in sources.modules() if LATER.search(module.text)]


def test_no_file_names_a_machine_or_an_index() -> None:
    named = []
    for path in sources.tracked():
        if path.name == "LICENSE":
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a binary file
        named += [(str(path.relative_to(sources.ROOT)), word) for word in MACHINES if word in text]
    assert not named


def test_rooms_are_named_for_what_they_do() -> None:
    assert not [m.where for m in sources.modules() if m.name.rpartition(".")[2] in VAGUE]


def test_crash_points_are_literal_and_cost_nothing_when_disarmed() -> None:
    seen, wrong = 0, []
    for module in sources.modules():
        lines = module.text.splitlines()
        for node in ast.walk(module.tree):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "points.hit"):
                continue
            seen += 1
            literal = len(node.args) == 1 and isinstance(node.args[0], ast.Constant)
            if not literal or "points.armed" not in lines[node.lineno - 2]:
                wrong.append(f"{module.where}:{node.lineno}")
    assert seen
    assert not wrong
