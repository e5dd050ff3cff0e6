"""Merging values, clocks and resolvers: what is refused, and with which error."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import cenote
from cenote import limits
from cenote.conflict import RESOLVERS, CustomMerge, register
from cenote.errors import CodecError, RejectedError
from cenote.model import value as values
from cenote.model.merging import AppendLog, GSet, ORMap, ORSet, PNCounter


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: cenote.VectorClock({"a": -1}),
        lambda: cenote.VectorClock({"a": True}),
        lambda: cenote.VectorClock({"a": 2**53}),
        lambda: cenote.VectorClock({"no spaces": 1}),
        lambda: cenote.VectorClock({f"a{n}": 1 for n in range(limits.CLOCK_ACTORS_MAX + 1)}),
        lambda: cenote.VectorClock.from_json([1]),
        lambda: cenote.HybridClock.from_json([1, -1, "a"]),
        lambda: cenote.HybridClock.from_json([1, 2]),
        lambda: cenote.HybridClock(0, 0, "a").receive(cenote.HybridClock(10**9, 0, "b"), 5),
        lambda: PNCounter().increment(0),
        lambda: PNCounter().increment(1.0),  # type: ignore[arg-type]  # what must be refused
        lambda: ORSet([[]]),
        lambda: ORSet([object()]),
        lambda: GSet([1, 2, 3], limit=2),
        lambda: AppendLog(limit=0),
        lambda: ORSet().merge(PNCounter()),  # type: ignore[arg-type]  # what must be refused
        lambda: ORMap({"v": PNCounter()})["v"].settle(None, "p"),
        lambda: cenote.resolve(cenote.Side(1), cenote.Side(2), "no such"),
        lambda: cenote.resolve(cenote.Side(1), cenote.Side(2), "custom"),
        lambda: cenote.resolve(cenote.Side(1), cenote.Side(ORSet()), "crdt"),
        lambda: cenote.resolve(cenote.Side(1), cenote.Side(2), "causal"),
        lambda: CustomMerge(lambda a, b, base: a / 0)(cenote.Side(1), cenote.Side(2)),
        lambda: CustomMerge(lambda a, b, base: object())(cenote.Side(1), cenote.Side(2)),
    ],
)
def test_what_cannot_be_meant_is_refused(attempt: Callable[[], Any]) -> None:
    with pytest.raises(RejectedError):
        attempt()


def test_both_are_named_where_two_do_not_fit() -> None:
    with pytest.raises(RejectedError, match="ORSet and PNCounter"):
        cenote.resolve(cenote.Side(ORSet()), cenote.Side(PNCounter()), "crdt")
    with pytest.raises(RejectedError, match=r"of b is .* ms ahead of 5;"):
        cenote.HybridClock(0, 0, "a").receive(cenote.HybridClock(10**9, 0, "b"), 5)


@pytest.mark.parametrize(
    "body",
    [
        b"{}", b"1", b'{"items":["a"],"dots":[[0,1]],"actors":[]}', b'{"items":["a"],"dots":[],"actors":[["p",1]]}',
        b'{"items":["a"],"dots":[[0,2]],"actors":[["p",1]]}', b'{"items":["a"],"dots":[[]],"actors":[["p",1]]}',
        b'{"items":["a","b"],"dots":[[0,1],[0,1]],"actors":[["p",1]]}', b'{"items":[],"dots":[],"actors":[["p",-1]]}',
        b'{"items":[],"dots":[],"actors":[["p",1],["p",2]]}', b'{"items":[[]],"dots":[[0,1]],"actors":[["p",1]]}',
        b'{"items":[],"dots":[],"actors":[],"limit":0}',
    ],
)  # fmt: skip
def test_malformed_stored_forms_are_codec_errors(body: bytes) -> None:
    with pytest.raises(CodecError):
        values.decode("j", b'{"$orset":' + body + b"}")


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_never_writes_under_the_same_name(again: Callable[[Any], Any]) -> None:
    one = PNCounter(5)
    other = again(one)
    assert other == one
    one.increment()
    other.increment()
    assert one.merge(other).value == 7
    settled = other.settle(one.settle(None, "p"), "q")
    assert settled.value == 7


def test_a_value_that_too_many_have_changed_is_refused_until_it_begins_anew() -> None:
    crowd = ORSet({"a"}).settle(None, "p")
    crowd._causes.context.vector |= {f"p{n}": 1 for n in range(limits.MERGING_ACTORS_MAX - 1)}
    crowd = values.decode(*values.encode(crowd))
    crowd.add("b")
    with pytest.raises(RejectedError, match=r"ORSet: 8193 actors have changed it; the limit is 8192"):
        values.encode(crowd.settle(crowd, "q"))
    fresh = crowd.fresh().settle(None, "q")
    assert set(values.decode(*values.encode(fresh))) == {"a", "b"}
    assert fresh.actors == {"q"}


def test_begun_anew_it_has_the_same_content_and_no_history() -> None:
    board = ORMap({"votes": PNCounter(5), "seen": ORSet({1, 2}), "log": AppendLog("abc", limit=2), "plan": {"a": [1]}})
    board["sub"] = ORMap({"seen": GSet({3}, limit=4)})
    other = board.copy()
    board["votes"].decrement(2)
    other["seen"].discard(1)
    board = board.merge(other)
    fresh = board.fresh().settle(None, "r")
    assert (fresh["votes"].value, set(fresh["seen"]), list(fresh["log"])) == (3, {2}, ["b", "c"])
    assert (fresh["plan"].value, set(fresh["sub"]["seen"]), fresh["sub"]["seen"].limit) == ({"a": [1]}, {3}, 4)
    assert fresh.actors == {"r"}


def test_a_merged_set_beyond_its_limit_can_be_put_into_a_map() -> None:
    one, other = ORSet({"a"}, limit=1), ORSet({"b"}, limit=1)
    board = ORMap({"seen": one.merge(other)})
    assert set(board["seen"]) == {"a", "b"}
    with pytest.raises(RejectedError):
        board["seen"].add("c")


def test_a_custom_merge_is_given_copies_and_the_ancestor() -> None:
    def longer(current: Any, incoming: Any, ancestor: Any) -> Any:
        current.append(ancestor)
        return current + incoming

    sides = cenote.Side([1]), cenote.Side([2])
    register("longer", CustomMerge(longer))
    try:
        found = cenote.resolve(*sides, "longer", ancestor=cenote.Side(0))
    finally:
        del RESOLVERS["longer"]
    assert (found.value, found.winner, found.discarded) == ([1, 0, 2], "merged", sides)
    assert sides[0].value == [1]
