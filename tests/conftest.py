"""What holds in every room: a time limit, no silent skips, one choice of PostgreSQL, who runs alone, and where the
time went.

On CI (`CI=true`) a test that is skipped, or expected to fail, counts as failed, unless
`tests/allowed_skips.txt` names it with a reason: a suite that quietly stops testing something looks exactly
like one that passes.
"""

import fcntl
import os
import signal
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
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
    """Give each test the limit of its room, unless it brings its own; campaigns have none. Who runs alone runs last."""
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)
    for item in items:
        if item.get_closest_marker("timeout") or item.get_closest_marker("campaign"):
            continue
        limit = JUDGE_TIMEOUT_S if item.get_closest_marker("judge") else TIMEOUT_S.get(room_of(item.nodeid))
        if limit:
            item.add_marker(pytest.mark.timeout(limit))


# --- who runs alone -----------------------------------------------------------------------------------


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with path.open() as file:
        fcntl.flock(file, how)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # by name: a child that was forked meanwhile would keep a closed one


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Of several workers, one runs a test marked `alone` while the others wait. First come, first served: who waits for
    the others to end (`witness.py`) stands in the door (`conftest.py`). The limit of a test begins after this."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    how = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
    with ExitStack() as stack:
        with _locked(HERE / "conftest.py", fcntl.LOCK_EX):
            stack.enter_context(_locked(HERE / "witness.py", how))
        return (yield)


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
    took_s: float = 0.0
    slowest_s: float = 0.0
    slowest: str = ""


ROOMS: dict[str, Room] = {}
BEGUN = time.monotonic()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    room = ROOMS.setdefault(room_of(report.nodeid), Room())
    room.took_s += report.duration
    if report.when == "setup":
        room.tests += 1
    if report.duration > room.slowest_s:
        room.slowest_s, room.slowest = report.duration, f"{report.nodeid.split('/')[-1]} ({report.when})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not ROOMS:
        return
    terminalreporter.section("rooms")
    for name, room in sorted(ROOMS.items()):
        terminalreporter.write_line(
            f"{name:<13}{room.tests:>5} tests {room.took_s:>7.1f} s   slowest {room.slowest_s:.1f} s: {room.slowest}"
        )
    workers = config.getoption("numprocesses", None) or 1
    took_s = time.monotonic() - BEGUN
    terminalreporter.write_line(
        f"{'the whole':<13}{sum(room.tests for room in ROOMS.values()):>5} tests {took_s:>7.1f} s   workers: {workers}"
    )
