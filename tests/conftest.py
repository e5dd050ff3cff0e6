"""What holds in every room: a time limit, no silent skips, one choice of PostgreSQL, and where the time went.

On CI (`CI=true`) a test that is skipped, or expected to fail, counts as failed, unless
`tests/allowed_skips.txt` names it with a reason: a suite that quietly stops testing something looks exactly
like one that passes.
"""

import os
import signal
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TIMEOUT_S = {"unit": 10, "docs": 120, "property": 120, "model": 30, "integration": 90, "crash": 120, "architecture": 60}
JUDGE_TIMEOUT_S = 600
ON_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}

# CENOTE_TEST_POSTGRES_BIN chooses the PostgreSQL of the suite: a bin directory; without it, the wheel's. From here
# on it is the ordinary setting, inherited by child processes: cenote refuses variables that it does not know.
POSTGRES_BIN = os.environ.pop("CENOTE_TEST_POSTGRES_BIN", "")
if POSTGRES_BIN:
    os.environ["CENOTE_EMBEDDED__POSTGRES_BIN"] = POSTGRES_BIN


# Who runs this in the background of a shell leaves SIGINT ignored, and every child would inherit that: none of them
# could be interrupted as a user does it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"postgresql: {os.environ.get('CENOTE_EMBEDDED__POSTGRES_BIN', 'of the wheel')}; CI: {ON_CI}"


def room_of(nodeid: str) -> str:
    """The folder below tests/ that a test lives in."""
    parts = nodeid.split("::")[0].split("/")
    return parts[1] if len(parts) > 2 and parts[0] == "tests" else parts[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the limit of its room, unless it brings its own; campaigns have none."""
    for item in items:
        if item.get_closest_marker("timeout") or item.get_closest_marker("campaign"):
            continue
        limit = JUDGE_TIMEOUT_S if item.get_closest_marker("judge") else TIMEOUT_S.get(room_of(item.nodeid))
        if limit:
            item.add_marker(pytest.mark.timeout(limit))


# --- no silent skips ----------------------------------------------------------------------------------


def allowed_skips(lines: Iterable[str]) -> dict[str, str]:
    """Test id (or the beginning of one) → reason."""
    allowed: dict[str, str] = {}
    for line in lines:
        test, _, reason = line.partition(" # ")
        if test.strip() and not line.startswith("#"):
            allowed[test.strip()] = reason.strip()
    return allowed


ALLOWED = allowed_skips((HERE / "allowed_skips.txt").read_text(encoding="utf-8").splitlines())


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not (ON_CI and report.skipped) or any(report.nodeid.startswith(test) for test in ALLOWED):
        return
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else getattr(report, "wasxfail", "")
    if hasattr(report, "wasxfail"):
        del report.wasxfail
    report.outcome = "failed"
    report.longrepr = f"skipped on CI and not listed in tests/allowed_skips.txt: {why}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


# --- where the time went ------------------------------------------------------------------------------


@dataclass
class Room:
    """One line of the closing report."""

    tests: int = 0
    begin: float = float("inf")
    end: float = 0.0
    slowest_s: float = 0.0
    slowest: str = ""


ROOMS: dict[str, Room] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    room = ROOMS.setdefault(room_of(report.nodeid), Room())
    room.begin = min(room.begin, report.start)
    room.end = max(room.end, report.stop)
    if report.when == "setup":
        room.tests += 1
    if report.duration > room.slowest_s:
        room.slowest_s, room.slowest = report.duration, f"{report.nodeid.split('/')[-1]} ({report.when})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not ROOMS:
        return
    terminalreporter.section("rooms")
    for name, room in ROOMS.items():
        terminalreporter.write_line(
            f"{name:<13}{room.tests:>5} tests {room.end - room.begin:>7.1f} s   "
            f"slowest {room.slowest_s:.1f} s: {room.slowest}"
        )
