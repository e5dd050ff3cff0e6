"""An observed-remove set under load: four processes, a hundred thousand additions and removals, compared with brute
force; and what lives in it is all that it costs."""

import multiprocessing
import time
from multiprocessing import Queue
from random import Random
from typing import Any, NamedTuple

import pytest

from cenote.model import value as values
from cenote.model.merging import ORSet

PROCESSES, ROUNDS, CHANGES = 4, 20, 1_250
ELEMENTS = 5_000
ITEM_BYTES = 40  # an element of up to 13 bytes as JSON, and its dots: one, or one for each who added it at once
OTHER_BYTES = 200  # tags, and an entry for each process


class Step(NamedTuple):
    """What a process does: "add" or "discard" an element, "tell" its state at the end of a round, "merge" a peer's."""

    did: str
    element: str = ""
    peer: int = 0
    round: int = 0


def plan(me: int) -> list[Step]:
    """The same whenever it is asked for; a peer's round is heard of at once, or up to two rounds later."""
    random = Random(f"process {me}")
    steps: list[Step] = []
    unheard: list[tuple[int, int]] = []
    for now in range(ROUNDS):
        for _ in range(CHANGES):
            steps.append(Step(random.choice(["add", "discard"]), f"tunnel-{random.randrange(ELEMENTS)}"))
        steps.append(Step("tell", round=now))
        unheard += [(peer, now) for peer in range(PROCESSES) if peer != me]
        for peer, told in unheard.copy():
            if now == ROUNDS - 1 or now - told == 2 or random.random() < 0.4:
                unheard.remove((peer, told))
                steps.append(Step("merge", peer=peer, round=told))
    return steps


def work(me: int, inboxes: "list[Queue[Any]]", parent: "Queue[Any]") -> None:
    """One process: takes its steps, and sends its encoded states to its peers."""
    mine, stored = ORSet(), ORSet()
    arrived: dict[tuple[int, int], ORSet] = {}
    spent, walked = 0.0, 0
    for step in plan(me):
        if step.did == "add":
            mine.add(step.element)
        elif step.did == "discard":
            mine.discard(step.element)
        elif step.did == "tell":
            settled = mine.settle(stored, f"p{me}")
            mine.adopt(settled)
            stored = mine.copy()
            for peer, inbox in enumerate(inboxes):
                if peer != me:
                    inbox.put((me, step.round, *values.encode(stored)))
        else:
            while (step.peer, step.round) not in arrived:
                peer, told, codec, body = inboxes[me].get(timeout=60)
                arrived[peer, told] = values.decode(codec, body)
            other = arrived.pop((step.peer, step.round))
            walked += len(mine) + len(other)
            began = time.process_time()
            mine = mine.merge(other)
            spent += time.process_time() - began
    parent.put((me, *values.encode(mine), spent / walked * 1e6))


class Replay:
    """A process by definition: each addition by itself, those that were seen, and those that were removed.

    The sets of additions are bits of two ints, so that brute force remembers every state ever told.
    """

    additions: list[str]

    def __init__(self, additions: list[str]) -> None:
        self.additions = additions
        self.seen = self.gone = 0
        self.live: dict[str, int] = {}

    def add(self, element: str) -> None:
        bit = 1 << len(self.additions)
        self.additions.append(element)
        self.seen |= bit
        self.live[element] = self.live.get(element, 0) | bit

    def discard(self, element: str) -> None:
        self.gone |= self.live.pop(element, 0)

    def merge(self, seen: int, gone: int) -> None:
        self.seen, self.gone, self.live = self.seen | seen, self.gone | gone, {}
        bits = bin(self.seen & ~self.gone)[:1:-1]
        place = bits.find("1")
        while place >= 0:
            element = self.additions[place]
            self.live[element] = self.live.get(element, 0) | 1 << place
            place = bits.find("1", place + 1)


def replayed() -> list[set[str]]:
    """What each process must hold in the end."""
    additions: list[str] = []
    copies = [Replay(additions) for _ in range(PROCESSES)]
    told: dict[tuple[int, int], tuple[int, int]] = {}
    waiting = {me: list(reversed(plan(me))) for me in range(PROCESSES)}
    while any(waiting.values()):
        for me, steps in waiting.items():
            while steps and (steps[-1].did != "merge" or (steps[-1].peer, steps[-1].round) in told):
                step, copy = steps.pop(), copies[me]
                if step.did == "tell":
                    told[me, step.round] = copy.seen, copy.gone
                elif step.did == "merge":
                    copy.merge(*told[step.peer, step.round])
                else:
                    (copy.add if step.did == "add" else copy.discard)(step.element)
    return [set(copy.live) for copy in copies]


@pytest.mark.judge
def test_a_hundred_thousand_additions_and_removals_by_four_processes_are_exact() -> None:
    spawn = multiprocessing.get_context("spawn")
    inboxes: list[Queue[Any]] = [spawn.Queue() for _ in range(PROCESSES)]
    parent: Queue[Any] = spawn.Queue()
    workers = [spawn.Process(target=work, args=(me, inboxes, parent)) for me in range(PROCESSES)]
    for worker in workers:
        worker.start()
    expected = replayed()
    found = {me: rest for me, *rest in (parent.get(timeout=120) for _ in workers)}
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    for me, (codec, packed, merge_us) in found.items():
        final = values.decode(codec, packed)
        assert set(final) == expected[me] == expected[0]
        assert final == values.decode(*found[0][:2]), "all hold the same state in the end"
        assert final.actors == {f"p{peer}" for peer in range(PROCESSES)}
        _, body = values.unpack(codec, packed)
        assert len(body) <= ITEM_BYTES * len(final) + OTHER_BYTES
        print(
            f"process {me}: {len(final)} live, {len(body) / len(final):.1f} bytes each as JSON "
            f"({len(packed) / len(final):.1f} stored), {merge_us:.2f} µs for each element that a merge walks"
        )
        for element in expected[me]:
            final.discard(element)
        assert len(values.encode(final)[1]) <= OTHER_BYTES, "removals leave nothing behind"
