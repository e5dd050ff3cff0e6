"""Laws of merging values: the lattice, and settling under compare-and-set, against brute force."""

from random import Random
from typing import Any

import pytest
from histories import Register, change, examples, new, states
from hypothesis import given, settings
from hypothesis import strategies as st

from cenote.model import value as values
from cenote.model.merging import KINDS, Actors, AppendLog, Merging, ORMap, ORSet, PNCounter
from cenote.testing import check_merging_laws

RANDOMS = st.randoms(use_true_random=False)


@pytest.mark.parametrize("cls", KINDS.values(), ids=KINDS)
def test_every_type_keeps_the_laws(cls: type[Merging]) -> None:
    with examples(25):
        check_merging_laws(cls, states(cls))


@pytest.mark.judge
@pytest.mark.parametrize("cls", KINDS.values(), ids=KINDS)
def test_every_type_keeps_the_laws_in_many_histories(cls: type[Merging]) -> None:
    with examples(1_500):
        check_merging_laws(cls, states(cls))


@settings(max_examples=25)
@given(st.sampled_from(sorted(KINDS)), RANDOMS)
def test_a_state_comes_back_from_both_tiers_wherever_it_stands(kind: str, random: Random) -> None:
    one = new(KINDS[kind], random)
    for _ in range(random.randrange(12)):
        change(one, random)
    for value in (one, {"a": [one, 1]}, [[one]]):
        codec, body = values.encode(value)
        assert values.decode(codec, body) == value
        text, raw = values.json_text(codec, body)
        assert text is not None
        assert raw is None
        assert values.decode(*values.from_sql(text, raw)) == value


# --- an observed-remove set and a map against brute force -------------------------------------------------------


class SetOracle:
    """An ORSet by definition: all additions ever, each by itself, and all that was removed of them."""

    def __init__(self) -> None:
        self.added: set[tuple[str, int]] = set()
        self.removed: set[tuple[str, int]] = set()

    def elements(self) -> set[str]:
        return {element for element, _ in self.added - self.removed}

    def discard(self, element: str) -> None:
        self.removed |= {one for one in self.added if one[0] == element}

    def join(self, other: "SetOracle") -> "SetOracle":
        joined = SetOracle()
        joined.added, joined.removed = self.added | other.added, self.removed | other.removed
        return joined


@settings(max_examples=30)
@given(RANDOMS)
def test_an_orset_is_what_brute_force_says(random: Random) -> None:
    copies: list[tuple[ORSet, SetOracle]] = [(ORSet(), SetOracle()) for _ in range(3)]
    stored: tuple[ORSet, SetOracle] = ORSet(), SetOracle()
    for step in range(40):
        i, deed, element = random.randrange(3), random.random(), random.choice("abcd")
        mine, oracle = copies[i]
        if deed < 0.35:
            mine.add(element)
            oracle.added.add((element, step))
        elif deed < 0.6:
            mine.discard(element)
            oracle.discard(element)
        elif deed < 0.75:
            other = random.choice(copies)
            copies[i] = mine.merge(other[0]), oracle.join(other[1])
        else:
            settled = mine.settle(stored[0], f"p{i}")
            stored = settled.copy(), oracle.join(stored[1])
            if random.random() < 0.5:  # changed while the write was under way
                mine.discard(element)
                oracle.discard(element)
            mine.adopt(settled)
            copies[i] = mine, oracle.join(stored[1])
        assert set(copies[i][0]) == copies[i][1].elements()
        assert set(stored[0]) == stored[1].elements()


# --- settling under compare-and-set -----------------------------------------------------------------------------


def _bumped(value: Any, random: Random) -> int:
    """One counted change."""
    by = random.randint(1, 3)
    (value if isinstance(value, PNCounter) else value["votes"]).increment(by)
    return by


def _votes(value: Any) -> int:
    return value.value if isinstance(value, PNCounter) else value["votes"].value


@settings(max_examples=40)
@given(st.booleans(), RANDOMS)
def test_no_increment_is_lost_or_counted_twice_under_compare_and_set(in_a_map: bool, random: Random) -> None:
    register, processes = Register(), [Actors(f"p{i}") for i in range(3)]
    first = ORMap({"votes": PNCounter()}) if in_a_map else PNCounter()
    actor = processes[0].actor("k", None)
    settled = first.settle(None, actor)
    assert register.put(settled, 0)
    processes[0].wrote("k", settled, actor)
    copies = [[register.get()[0], 0, None] for _ in range(7)]  # value, its unacknowledged increments, a write begun
    acked = lost_races = 0
    for _ in range(60):
        i = random.randrange(7)
        copy, mine = copies[i], processes[i % 3]
        if copy[2] is None and random.random() < 0.5:
            copy[1] += _bumped(copy[0], random)
        elif copy[2] is None:
            current, version = register.get()
            actor = mine.actor("k", current)
            copy[2] = copy[0].settle(current, actor), version, copy[1], actor
        else:
            if random.random() < 0.3:
                copy[1] += _bumped(copy[0], random)
            settled, version, part, actor = copy[2]
            if register.put(settled, version):
                mine.wrote("k", settled, actor)
                copy[0].adopt(settled)
                copy[1] -= part
                acked += part
            else:
                lost_races += 1
            copy[2] = None
        assert _votes(register.value) == acked
        assert register.value.actors <= {"p0.1", "p1.1", "p2.1"}
    for copy in copies:
        assert _votes(copy[0].merge(register.value)) == acked + copy[1]
        copies[0][0] = copies[0][0].merge(copy[0])
    assert _votes(copies[0][0].merge(register.value)) == acked + sum(copy[1] for copy in copies)


@settings(max_examples=30)
@given(RANDOMS)
def test_where_lines_part_nothing_is_lost_in_any_later_merge(random: Random) -> None:
    """Restored, deleted, copied to another key: every element ever added is in the merge of all that ever was."""
    actors = Actors("p")
    lines: list[Any] = [None, None]
    every, added = [], 0
    for _ in range(25):
        place, deed = random.randrange(2), random.random()
        if deed < 0.15:
            lines[place] = None
        elif deed < 0.3 and every:
            lines[place] = random.choice(every).copy()
        else:
            value = ORSet() if lines[place] is None else lines[place].copy()
            value.add(added)
            added += 1
            actor = actors.actor(place, lines[place])
            lines[place] = value.settle(lines[place], actor)
            actors.wrote(place, lines[place], actor)
            every.append(lines[place])
    whole = ORSet()
    for one in every:
        whole = whole.merge(one)
    assert set(whole) == set(range(added))


def test_one_actor_for_two_lines_would_lose_an_addition() -> None:
    """Why `Actors` gives another name: the tooth of the test above."""
    base = ORSet({"a"}).settle(None, "p")
    one, other = base.copy(), base.copy()
    one.add("b")
    other.add("c")
    merged = one.settle(base, "p").merge(other.settle(base, "p"))
    assert set(merged) != {"a", "b", "c"}


def test_a_bounded_log_keeps_the_newest_whoever_merges_when() -> None:
    @settings(max_examples=25)
    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=30), RANDOMS)
    def law(appends: list[tuple[int, int]], random: Random) -> None:
        logs, whole = [AppendLog(limit=4) for _ in range(3)], [AppendLog() for _ in range(3)]
        for n, (i, wall_ms) in enumerate(appends):
            logs[i].append(n, wall_ms=wall_ms)
            whole[i].append(n, wall_ms=wall_ms)
        joined = logs[2].merge(logs[0]).merge(logs[1])
        assert list(joined) == list(logs[0].merge(logs[1]).merge(logs[2]))
        assert len(joined) == min(4, sum(map(len, logs)))
        assert all(list(short) == list(full)[-4:] for short, full in zip(logs, whole, strict=True))

    law()
