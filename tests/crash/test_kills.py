"""Processes that die or freeze at moments that nobody chose: S01, S07, S16, and S25 where the servers are ours."""

import asyncio
import os
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import campaign
import pytest

import cenote
import history
from cenote import opening
from cenote.testing import TestServers
from witness import demand, reached, toothed

SEED = int(os.environ.get("FAULT_SEED") or 0)
ROUNDS = int(os.environ.get("FAULT_ROUNDS") or 20)


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServers]:
    """Servers that may be killed: nobody else uses them."""
    servers = TestServers(tmp_path_factory.mktemp("killed")).start()
    yield servers
    servers.stop()


async def working(case: campaign.Case, session: str, *, acked: int) -> Any:
    """A child that has had so many writes acknowledged."""
    process = await asyncio.to_thread(campaign.start, case, session, seconds=60)
    async with asyncio.timeout(40):
        while history.acked(history.read(case.journal)) < acked:
            assert process.poll() is None, "the child ended"
            await asyncio.sleep(0.1)
    return process


def kill(process: Any) -> None:
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("acked", [70, pytest.param(400, marks=pytest.mark.judge)])
async def test_s01_a_killed_writer_loses_nothing(acked: int, cenote_servers: TestServers, tmp_path: Path) -> None:
    """The dirty set is in the store, so it survives the process; 70 is in the midst of its first flushes."""
    case = await campaign.seed(cenote_servers, tmp_path)
    kill(await working(case, "child", acked=acked))
    print(await campaign.judge(cenote_servers, case))


async def test_s01_one_of_two_dies_and_the_other_goes_on(cenote_servers: TestServers, tmp_path: Path) -> None:
    """The survivor takes the lease over; a third process joins; the survivor dies, too."""
    case = await campaign.seed(cenote_servers, tmp_path)
    first = await working(case, "first", acked=150)
    second = await working(case, "second", acked=500)
    kill(first)
    third = await working(case, "third", acked=1200)
    kill(second)
    kill(third)
    print(await campaign.judge(cenote_servers, case))


@pytest.mark.judge
async def test_s07_a_frozen_process_comes_back_too_late(cenote_servers: TestServers, tmp_path: Path) -> None:
    """The active flusher stands still with a batch in hand; another takes over, everything is written again; then it
    wakes up and goes on as if nothing had happened."""
    case = await campaign.seed(cenote_servers, tmp_path)
    frozen = await working(case, "frozen", acked=200)
    async with cenote.open(**case.settings, flush__enabled=False) as store:
        await reached(lambda: flushes(store, frozen), "the lease of the process that will freeze")
        frozen.send_signal(signal.SIGSTOP)
        heir = await working(case, "heir", acked=history.acked(history.read(case.journal)) + 600)
        await reached(lambda: flushes(store, heir), "the heir's lease")
    frozen.send_signal(signal.SIGCONT)
    before = history.acked(history.read(case.journal))
    async with asyncio.timeout(30):
        while history.acked(history.read(case.journal)) < before + 400:
            await asyncio.sleep(0.1)
    kill(heir)
    kill(frozen)
    print(await campaign.judge(cenote_servers, case))


async def flushes(store: cenote.Store, process: Any) -> bool:
    """Whether the flusher's board names this process."""
    board = await store._machines.lease.read()
    return board is not None and bool(board.pid == process.pid)


async def everything_dies(servers: TestServers, directory: Path, dice: random.Random) -> dict[str, int]:
    """Writer, NATS and PostgreSQL are killed in random order at random moments; a second writer lives through it."""
    case = await campaign.seed(servers, directory)
    doomed = await working(case, "doomed", acked=80 + dice.randrange(300))
    witness = await working(case, "witness", acked=450)
    before = {name: servers.info[name]["pid"] for name in ("nats", "postgres")}
    victims = ["nats", "postgres", "doomed"]
    dice.shuffle(victims)
    for victim in victims:
        await asyncio.sleep(dice.random() * 0.3)  # a moment that nobody chose
        if victim == "doomed":
            kill(doomed)
        else:
            os.kill(before[victim], signal.SIGKILL)
    async with asyncio.timeout(40):
        while any(servers.info[name]["pid"] == pid for name, pid in before.items()):
            await asyncio.sleep(0.05)
        acked = history.acked(history.read(case.journal))
        while history.acked(history.read(case.journal)) < acked + 100:
            assert witness.poll() is None, "the surviving writer ended"
            await asyncio.sleep(0.05)
    kill(witness)
    return await campaign.judge(servers, case)


async def test_s16_writer_nats_and_postgresql_die_together(own_servers: TestServers, tmp_path: Path) -> None:
    print(await everything_dies(own_servers, tmp_path, random.Random(16)))


@pytest.mark.judge
@pytest.mark.parametrize("seed", range(1, 7))
async def test_s16_again(seed: int, own_servers: TestServers, tmp_path: Path) -> None:
    print(await everything_dies(own_servers, tmp_path, random.Random(seed)))


@pytest.mark.campaign
@pytest.mark.parametrize("number", range(ROUNDS))
async def test_campaign(number: int, own_servers: TestServers, tmp_path: Path) -> None:
    """`make faults`: a failure is repeated by FAULT_SEED = the seed printed here and FAULT_ROUNDS = 1."""
    print("FAULT_SEED", SEED + number, await everything_dies(own_servers, tmp_path, random.Random(SEED + number)))


# --- a KV store that goes back in time -----------------------------------------------------------------------

LIFE = """
import asyncio, json, sys
import cenote

async def main():
    async with cenote.open(data_dir=sys.argv[1], flush__drain_ms=0) as store:
        agent = store.agent("s25")
        for number in range(5):
            await agent.put("k", number)
        await agent.put("deleted", "alive")
        await store.flush(10)
        print(store.servers["nats"]["pid"], flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for number in range(5, 20):
            await agent.put("k", number, durability="sql")
        await agent.put("later", "only in the lost tail", durability="sql")
        await agent.delete("deleted")
        await store.flush(10)
        print("done", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


def recovery_after_an_unclean_stop(patch: pytest.MonkeyPatch) -> None:
    """A KV store that was not closed is opened as it is."""

    async def nothing(*_: Any) -> None:
        return None

    patch.setattr(opening, "_recover_all", nothing)


@toothed(recovery_after_an_unclean_stop)
async def test_s25_a_kv_store_that_lost_its_tail_serves_nothing_old(tmp_path: Path) -> None:
    """Power is lost: the store on disk is an older image, while SQL has what was flushed since (flow.md, head)."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        LIFE,
        str(tmp_path / "data"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    pid = int(await process.stdout.readline())
    store_dir, image = tmp_path / "data/nats/store", tmp_path / "image"
    shutil.copytree(store_dir, image)
    process.stdin.write(b"\n")
    assert await process.stdout.readline() == b"done\n"
    process.kill()  # first: nobody is left who would start the server again
    await process.wait()
    os.kill(pid, signal.SIGKILL)
    shutil.rmtree(store_dir)
    image.rename(store_dir)
    async with cenote.open(data_dir=tmp_path / "data", flush__drain_ms=0) as store:
        assert store.servers is not None
        assert store.servers["nats"]["pid"] != pid
        agent = store.agent("s25")
        demand(await agent.get("k") == 19, "I1: KV serves an older value than SQL has")
        demand(await agent.get("later") == "only in the lost tail", "I1: a flushed write is gone")
        demand(await agent.get("deleted") is None, "I2: a deleted key came back with the older image")
        receipt = await agent.put("k", 20, durability="sql")
        demand(receipt.version.revision > 22, "I3: a sequence was given out twice")
        row = await store._core.table.read(agent.id, "k")
        demand(row is not None and row.value == "20", "I3: the fence refuses what is written after the rewind")
