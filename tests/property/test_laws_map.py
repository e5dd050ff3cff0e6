"""A map of merging fields against brute force: a removal takes what it has seen, and nothing else ever goes."""

from collections.abc import Callable, Iterator
from itertools import permutations
from random import Random
from typing import Any, NamedTuple

import pytest
from histories import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from cenote.model import value as values
from cenote.model.clock import HybridClock
from cenote.model.merging import KINDS, AppendLog, GCounter, GSet, LWWRegister, Merging, MVRegister, ORMap, ORSet

RANDOMS = st.randoms(use_true_random=False)
Path = tuple[tuple[str, str], ...]  # (name, kind) of a field, and of the field within it


class Change(NamedTuple):
    """One change ever made: where, what it did ("touch": it only says that the field is there), and to what."""

    path: Path
    did: str
    what: Any = None


class Oracle:
    """By definition: the changes that were seen, and those of them that a later change has taken away."""

    def __init__(self, seen: frozenset[int] = frozenset(), gone: frozenset[int] = frozenset()) -> None:
        self.seen, self.gone = seen, gone

    def join(self, other: "Oracle") -> "Oracle":
        return Oracle(self.seen | other.seen, self.gone | other.gone)


class Copy:
    """A map and its oracle, changed together; `every` are all changes of all copies, by number."""

    def __init__(self, board: ORMap, oracle: Oracle, every: list[Change]) -> None:
        self.board, self.oracle, self.every = board, oracle, every

    def live(self, path: Path) -> Iterator[tuple[int, Change]]:
        for number in sorted(self.oracle.seen - self.oracle.gone):
            if self.every[number].path[: len(path)] == path:
                yield number, self.every[number]

    def take(self, path: Path, which: Callable[[Change], bool] = lambda change: True) -> bool:
        taken = {number for number, change in self.live(path) if which(change)}
        self.oracle = Oracle(self.oracle.seen, self.oracle.gone | taken)
        return bool(taken)

    def made(self, path: Path, did: str, what: Any = None) -> None:
        self.every.append(Change(path, did, what))
        self.oracle = Oracle(self.oracle.seen | {len(self.every) - 1}, self.oracle.gone)

    # --- the changes

    def step(self, random: Random) -> None:
        name, deed = random.choice("xy"), random.random()
        if name not in self.board or deed < 0.12:
            self.assign(name, random.choice(sorted(KINDS)))
        elif deed < 0.3:
            self.board.discard(name)
            for path in self.named(name):
                self.take(path)
        else:
            child = self.board[name]
            self.change(child, ((name, child.KIND),), random)

    def named(self, name: str) -> list[Path]:
        return [((name, kind),) for kind in KINDS]

    def assign(self, name: str, kind: str) -> None:
        for path in self.named(name):
            self.take(path)
        self.board[name] = KINDS[kind]()
        self.made(((name, kind),), "touch")

    def change(self, child: Any, path: Path, random: Random) -> None:
        wall_ms, letter = random.randrange(5), random.choice("ab")
        if isinstance(child, ORMap):
            self.change_inner(child, path, random)
        elif isinstance(child, ORSet) and random.random() < 0.4:
            child.discard(letter)
            if self.take(path, lambda change: change[1:] == ("add", letter)):
                self.made(path, "touch")
        elif isinstance(child, GSet):
            child.add(letter)
            self.made(path, "add", letter)
        elif isinstance(child, GCounter):
            child.increment(2)
            self.made(path, "count", 2)
        elif isinstance(child, AppendLog):
            number = len(self.every)
            child.append(number, wall_ms=wall_ms)
            self.made(path, "append", (self.stamp(path, wall_ms), number))
        elif isinstance(child, LWWRegister):
            child.set(letter, wall_ms=wall_ms)
            stamp = self.stamp(path, wall_ms)
            self.take(path)
            self.made(path, "set", (stamp, letter))
        elif isinstance(child, MVRegister):
            child.set(letter)
            self.take(path)
            self.made(path, "set", letter)

    def change_inner(self, inner: ORMap, path: Path, random: Random) -> None:
        field = (*path, ("in", "orset"))
        if "in" not in inner:
            inner["in"] = ORSet()
            self.made(field, "touch")
        elif random.random() < 0.3:
            del inner["in"]
            self.take(field)
            self.made(path, "touch")
        else:
            self.change(inner["in"], field, random)

    def stamp(self, path: Path, wall_ms: int) -> HybridClock:
        stamps = [change.what[0] for _, change in self.live(path) if change.did in ("append", "set")]
        return max(stamps, default=HybridClock(0, 0, "")).now(wall_ms)

    # --- the comparison

    def check(self) -> None:
        expected = {path[0] for _, change in self.live(()) for path in [change.path]}
        assert set(self.board._children) == expected
        for field, child in self.board._children.items():
            self.check_field(child, (field,))

    def check_field(self, child: Any, path: Path) -> None:
        live = [change for _, change in self.live(path)]
        if isinstance(child, GSet):
            assert set(child) == {change.what for change in live if change.did == "add"}
        elif isinstance(child, GCounter):
            everything = [self.every[n] for n in self.oracle.seen]
            most = sum(change.what for change in everything if change.path == path and change.did == "count")
            least = sum(change.what for change in live if change.did == "count")
            assert least <= child.value <= most
            assert child.value == most or any(self.every[n].path == path for n in self.oracle.gone)
        elif isinstance(child, AppendLog):
            stamped = [change.what for change in live if change.did == "append"]
            assert sorted(child) == sorted(item for _, item in stamped)
            clocks = {item: stamp for stamp, item in stamped}
            assert [clocks[item][:2] for item in child] == sorted(stamp[:2] for stamp, _ in stamped)
        elif isinstance(child, LWWRegister):
            self.check_register(child, [change.what for change in live if change.did == "set"])
        elif isinstance(child, MVRegister):
            assert sorted(child.values) == sorted(change.what for change in live if change.did == "set")
        elif isinstance(child, ORMap):
            assert set(child) == {change.path[1][0] for change in live if len(change.path) > 1}
            for field, inner in child._children.items():
                self.check_field(inner, (*path, field))

    def check_register(self, child: LWWRegister, stamped: list[Any]) -> None:
        newest = max((stamp[:2] for stamp, _ in stamped), default=None)
        assert child.value in ({item for stamp, item in stamped if stamp[:2] == newest} or {None})


def _law_of_maps(random: Random) -> None:
    every: list[Change] = []
    copies = [Copy(ORMap(), Oracle(), every) for _ in range(3)]
    stored = Copy(ORMap(), Oracle(), every)
    for _ in range(30):
        i, deed = random.randrange(3), random.random()
        mine = copies[i]
        if deed < 0.65:
            mine.step(random)
        elif deed < 0.8:
            other = random.choice(copies)
            copies[i] = Copy(mine.board.merge(other.board), mine.oracle.join(other.oracle), every)
        else:
            settled = mine.board.settle(stored.board, f"p{i}")
            stored = Copy(settled.copy(), mine.oracle.join(stored.oracle), every)
            if random.random() < 0.5:
                mine.step(random)  # while the write was under way
            mine.board.adopt(settled)
            mine.oracle = mine.oracle.join(stored.oracle)
        copies[i].check()
        stored.check()


@settings(max_examples=60)
@given(RANDOMS)
def test_a_map_is_what_brute_force_says(random: Random) -> None:
    _law_of_maps(random)


@pytest.mark.judge
def test_a_map_is_what_brute_force_says_in_many_histories() -> None:
    with examples(1_500):
        given(RANDOMS)(_law_of_maps)()


# --- removed while changed --------------------------------------------------------------------------------------


def _changed(child: Any) -> None:
    if isinstance(child, GCounter):
        child.increment(3)
    elif isinstance(child, GSet):
        child.add("new")
    elif isinstance(child, AppendLog):
        child.append("new")
    elif isinstance(child, ORMap):
        child["new"] = "new"
    else:
        child.set("new")


def _shown(child: Any) -> Any:
    if isinstance(child, MVRegister):
        return child.values
    if isinstance(child, ORMap):
        return {name: child[name].value for name in child}
    return child.value if hasattr(child, "value") else list(child)


SURVIVES: dict[str, Any] = {
    "gcounter": 3, "pncounter": 3, "gset": ["new"], "orset": ["new"], "appendlog": ["new"], "lwwregister": "new",
    "mvregister": ["new"], "ormap": {"new": "new"},
}  # fmt: skip


@pytest.mark.parametrize("cls", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("first", ["remover", "changer"])
def test_a_field_removed_while_somebody_changes_it_survives_with_the_change(cls: type[Merging], first: str) -> None:
    stored = ORMap({"field": cls(), "other": 1}).settle(None, "p")
    remover, changer = stored.copy(), stored.copy()
    del remover["field"]
    _changed(changer["field"])
    for one, other in permutations((remover, changer)):
        assert _shown(one.merge(other)["field"]) == SURVIVES[cls.KIND]
    remover, changer = stored.copy(), stored.copy()
    del remover["field"]
    _changed(changer["field"])
    for who in (remover, changer) if first == "remover" else (changer, remover):
        settled = who.settle(stored, "q" if who is remover else "r")
        stored = settled.copy()
        who.adopt(settled)
    for board in (stored, stored.merge(remover), stored.merge(changer)):
        assert _shown(board["field"]) == SURVIVES[cls.KIND]
    again = stored.copy()  # it has seen the change: now the field goes
    del again["field"]
    assert list(again.settle(stored, "s")) == ["other"]
    assert list(again.merge(changer)) == ["other"]


def test_a_value_that_lost_by_its_clock_stands_where_only_the_winner_was_removed() -> None:
    stored = ORMap({"plan": LWWRegister()}).settle(None, "p")
    fast, slow = stored.copy(), stored.copy()
    fast["plan"].set("fast", wall_ms=9)
    slow["plan"].set("slow", wall_ms=1)
    stored = fast.settle(stored, "q")
    remover = stored.copy()
    del remover["plan"]
    stored = slow.settle(stored, "r")
    assert stored["plan"].value == "fast"
    assert remover.settle(stored, "s")["plan"].value == "slow"


def test_the_limit_of_a_removed_field_binds_nobody() -> None:
    """A limit that outlived its field would make the outcome of three merges depend on their order."""
    old = ORMap({"log": AppendLog("abc", limit=2)}).settle(None, "p")
    remover, maker = old.copy(), ORMap({"log": AppendLog("x")})
    del remover["log"]
    for boards in permutations((old, remover, maker)):
        merged = boards[0].merge(boards[1]).merge(boards[2])
        assert merged["log"].limit is None
        assert merged == boards[0].merge(boards[1].merge(boards[2]))
    both = values.decode(*values.encode(old.merge(maker)))
    assert both["log"].limit == 2
    assert both.merge(remover)["log"].limit is None
