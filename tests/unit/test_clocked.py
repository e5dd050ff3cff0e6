"""A value with its clock: what it looks like where it is stored, what is refused, and what tells it from others."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import cenote
from cenote import Clocked, HybridClock, VectorClock, limits
from cenote.conflict import strategy_of
from cenote.errors import CodecError, RejectedError
from cenote.model import value as values
from cenote.model.merging import KINDS, is_merging, kind_of

HLC, VECTOR = HybridClock(5, 1, "a"), VectorClock({"a": 2, "b": 1})
LARGE = "word " * 20_000


@pytest.mark.parametrize("clock", [HLC, VECTOR, VectorClock()], ids=["hlc", "vector", "no-events"])
@pytest.mark.parametrize("value", [None, {"$set": 1}, {("a", 1)}, {"text": LARGE}, 1e300], ids=range(5))
def test_it_comes_back_as_itself_from_both_tiers(value: Any, clock: Any) -> None:
    one = Clocked(value, clock)
    for whole in (one, [one], {"a": {"b": one}}):
        codec, body = values.encode(whole)
        assert values.decode(codec, body) == whole
        assert values.decode(*values.from_sql(*values.json_text(codec, body))) == whole
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one


def test_sql_reads_its_value_and_its_clock() -> None:
    codec, body = values.encode(Clocked({"goal": "map"}, HLC))
    assert (codec, body) == ("j", b'{"$clocked":{"value":{"goal":"map"},"hlc":[5,1,"a"]}}')
    assert values.encode(Clocked(1, VECTOR))[1] == b'{"$clocked":{"value":1,"vector":{"a":2,"b":1}}}'


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: Clocked(1, None),  # type: ignore[arg-type]  # what must be refused
        lambda: Clocked(1, (5, 1, "a")),  # type: ignore[arg-type]  # what must be refused
        lambda: Clocked(1, HybridClock(-1, 0, "a")),
        lambda: Clocked(1, HybridClock(0, 2**53, "a")),
        lambda: Clocked(1, HybridClock(1.5, 0, "a")),  # type: ignore[arg-type]  # what must be refused
        lambda: Clocked(1, HybridClock(True, 0, "a")),
        lambda: Clocked(1, HybridClock(1, 0, "a" * (limits.ACTOR_CHARS_MAX + 1))),
        lambda: Clocked(1, HybridClock(1, 0, "")),
        lambda: Clocked(1, VectorClock({f"a{n}": 1 for n in range(limits.CLOCK_ACTORS_MAX + 1)})),
        lambda: Clocked(cenote.ORSet(), HLC),
        lambda: Clocked(Clocked(1, HLC), HLC),
        lambda: values.encode(Clocked(object(), HLC)),
        lambda: values.encode(Clocked(float("nan"), HLC)),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_it_is_written(attempt: Callable[[], Any]) -> None:
    with pytest.raises(RejectedError):
        attempt()


def test_the_path_of_what_cannot_be_stored_leads_into_the_value() -> None:
    with pytest.raises(RejectedError, match=r"value\.plan\.value\.goal: object is not among"):
        values.encode({"plan": Clocked({"goal": object()}, HLC)})


@pytest.mark.parametrize(
    "body",
    [
        b"1", b"[]", b"{}", b'{"value":1}', b'{"hlc":[1,0,"a"]}', b'{"value":1,"hlc":[1,0]}',
        b'{"value":1,"hlc":[-1,0,"a"]}', b'{"value":1,"hlc":[1,0,"a"],"vector":{}}', b'{"value":1,"vector":[]}',
        b'{"value":1,"vector":{"a":-1}}', b'{"value":1,"vector":{"a":1.0}}', b'{"value":1,"vector":{"a b":1}}',
        b'{"value":1,"hlc":[9007199254740992,0,"a"]}', b'{"value":1,"hlc":null}',
        b'{"value":{"$no":1},"hlc":[1,0,"a"]}',
        b'{"value":{"$clocked":{"value":1,"hlc":[1,0,"a"]}},"hlc":[1,0,"a"]}',
    ],
)  # fmt: skip
def test_malformed_stored_forms_are_codec_errors(body: bytes) -> None:
    with pytest.raises(CodecError):
        values.decode("j", b'{"$clocked":' + body + b"}")


def test_the_strategy_is_the_one_of_the_values_own_type() -> None:
    assert strategy_of(Clocked(1, HLC)) == "lww"
    assert strategy_of(Clocked(1, VECTOR)) == "causal"
    assert strategy_of(cenote.PNCounter()) == "crdt"
    assert [strategy_of(plain) for plain in (None, {"$orset": 1}, [Clocked(1, HLC)])] == [None] * 3


@pytest.mark.parametrize("value", [Clocked(LARGE, HLC), Clocked(1, HLC), *(kind() for kind in KINDS.values())])
def test_stored_bytes_tell_what_they_are(value: Any) -> None:
    kind = getattr(value, "KIND", "clocked")
    codec, body = values.encode(value)
    assert kind_of(codec, body) == kind
    assert kind_of(*values.from_sql(*values.json_text(codec, body))) == kind
    assert (
        kind_of("j", body.replace(b'":', b'": ', 1) if codec == "j" else b'{"$clocked": 1}') == kind
    )  # as jsonb prints
    assert is_merging(codec, body)
    large = cenote.ORSet(f"{n} {LARGE[:99]}" for n in range(1_000))
    assert values.encode(large)[0] == "jz"
    assert kind_of(*values.encode(large)) == "orset"


@pytest.mark.parametrize(
    "value", [None, 1, "", {}, {"$orset": 1}, {"$": 1}, [], {1}, [cenote.ORSet()], LARGE, {"a": LARGE}]
)
def test_stored_bytes_of_plain_values_are_none(value: Any) -> None:
    assert not is_merging(*values.encode(value))
    assert not is_merging("j", b"")


@pytest.mark.parametrize(("codec", "body"), [("b", b"{}"), ("", b"{}"), ("jz", b"{}"), ("x", b'{"$orset":1}')])
def test_bytes_that_do_not_say_what_they_are_are_codec_errors(codec: str, body: bytes) -> None:
    with pytest.raises(CodecError):
        kind_of(codec, body)
