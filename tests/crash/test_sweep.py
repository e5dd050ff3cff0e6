"""kill -9 at every named point of every machine: the next process finds everything.

The points are read from the source, so a new one is swept by itself. Children run in threads while earlier ones are
being judged.
"""

import ast
import asyncio
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import campaign
import pytest

import cenote
from cenote.testing import TestServers
from witness import Violation

# The first crossing of these comes before the child has anything acknowledged.
FIRST = {
    "write.ready": 40, "write.acked": 40, "write.compared": 3, "batch.sent": 3, "batch.acked": 3, "read.answered": 5,
}  # fmt: skip


OWN_TESTS = {"mend", "restore", "checkpoint", "sleep", "expire", "fork", "policy", "import", "repair"}


def points() -> list[str]:
    """Every point that the engine and its road to NATS name, but the mender's: embedded servers give it nothing to do
    (`test_mending_crashes.py` kills it there); and those of what is done on purpose, which have tests of their own
    (`test_restore_crashes.py`, `test_keeping_crashes.py`, `test_fork_crashes.py`, `test_repair_judge.py`)."""
    names = set()
    rooms = Path(cenote.__file__).parent
    for path in (*rooms.glob("engine/*.py"), *rooms.glob("kv/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "points.hit":
                names.add(ast.literal_eval(node.args[0]))
    swept = {name for name in names if name.split(".")[0] not in OWN_TESTS}
    return sorted(swept, reverse=True)  # the evictor's last: it takes longest to have work


USUAL = [f"{name}:{FIRST.get(name, 1)}" for name in points()]
FULL = [f"{name}:{FIRST.get(name, 1) * nth}" for nth in (2, 3, 7) for name in points()]
Crashes = dict[str, Future[campaign.Case]]


@pytest.fixture(scope="module")
def crashes(
    request: pytest.FixtureRequest, cenote_servers: TestServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Crashes]:
    """A crash at each wanted point, under way."""
    directory = tmp_path_factory.mktemp("sweep")
    wanted = [
        item.callspec.params["place"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    with ThreadPoolExecutor(3) as pool:
        yield {place: pool.submit(campaign.crash, cenote_servers, directory, place) for place in reversed(wanted)}
        pool.shutdown(cancel_futures=True)


def test_every_machine_has_points() -> None:
    machines = {name.split(".")[0] for name in points()}
    assert machines == {"write", "batch", "read", "flush", "hydrate", "evict", "collect"}
    assert len(points()) >= 11


@pytest.mark.parametrize("place", [*USUAL, *(pytest.param(place, marks=pytest.mark.judge) for place in FULL)])
async def test_a_crash_at(place: str, crashes: Crashes, cenote_servers: TestServers) -> None:
    looked_at = await campaign.judge(cenote_servers, crashes[place].result())
    print(place, looked_at)


async def test_the_sweep_sees_a_write_that_was_settled_too_early(cenote_servers: TestServers, tmp_path: Path) -> None:
    """The same sweep over an engine that acknowledges entries before it commits them."""
    case = await asyncio.to_thread(campaign.crash, cenote_servers, tmp_path, "flush.taken:2", mutated=True)
    with pytest.raises(Violation, match="I1") as seen:
        await campaign.judge(cenote_servers, case)
    print("seen:", seen.value)
