"""The rules of tests/conftest.py, tried on a small suite: the guard against silent skips must bite."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sources

SUITE = """
import pytest

def test_done(): pass

@pytest.mark.skip(reason="not today")
def test_skipped(): pass

@pytest.mark.xfail(reason="some day")
def test_expected(): assert False
"""
MODULE_SKIP = "import pytest\npytest.skip('whole file', allow_module_level=True)\n"


def _run(tmp_path: Path, ci: str, allowed: str = "") -> str:
    room = tmp_path / "tests" / "unit"
    room.mkdir(parents=True)
    shutil.copy(sources.ROOT / "tests" / "conftest.py", tmp_path / "tests")
    (tmp_path / "tests" / "allowed_skips.txt").write_text(allowed)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (room / "test_small.py").write_text(SUITE)
    (room / "test_none.py").write_text(MODULE_SKIP)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:cenote", "tests"]
    own = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")
    }  # it has no workers
    done = subprocess.run(command, cwd=tmp_path, env=own | {"CI": ci}, capture_output=True, text=True)
    return done.stdout


def test_skips_are_allowed_at_home(tmp_path: Path) -> None:
    assert "1 passed, 2 skipped, 1 xfailed" in _run(tmp_path, "")


def test_skips_fail_on_ci(tmp_path: Path) -> None:
    text = _run(tmp_path, "true")
    assert "not listed in tests/allowed_skips.txt: Skipped: whole file" in text
    assert "1 error" in text


@pytest.mark.parametrize(
    ("allowed", "verdict"),
    [
        ("tests/unit/test_none.py # a reason", "1 failed, 1 passed, 1 skipped, 1 error"),
        ("tests/unit/ # a reason", "1 passed, 2 skipped, 1 xfailed"),
    ],
    ids=["one", "all"],
)
def test_a_listed_skip_passes_on_ci(tmp_path: Path, allowed: str, verdict: str) -> None:
    text = _run(tmp_path, "true", allowed)
    assert verdict in text
    assert "unit             3 tests" in text
