"""Values: what comes back, what is refused with which words, and what SQL is given."""

import dataclasses
import enum
import math
import random
import zlib
from collections import Counter, OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from pydantic.dataclasses import dataclass as pydantic_dataclass

from cenote import limits
from cenote.errors import CodecError, RejectedError
from cenote.model import value as values

BERLIN = ZoneInfo("Europe/Berlin")


def through_kv(value: object) -> Any:
    return values.decode(*values.encode(value))


def through_sql(value: object) -> Any:
    """As a row would carry it, where jsonb changes nothing; what it does change is tried on real servers."""
    text, raw = values.json_text(*values.encode(value))
    return values.decode(*values.from_sql(text, raw))


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, 1, -1, 2**63, 2**64, -(2**63) - 1, 10**4000 - 1, 1 - 10**4000,
        0.0, 1.0, 1e15, 9999999999999998.0, 5e-324, 0.1, "", "é😀", "a\nb\\\"", "$5", [], {}, [[]], {"": ""},
        {"$": 1}, {"$tuple": [1]}, {"$dict": {"$x": 1}}, {"$a": 1, "$b": 2}, [{"$bytes": "aGk="}],
        (), (1,), ((1,), [2]), {1, 2}, set(), frozenset(), frozenset({(1, "a")}), {frozenset({1})}, b"", b"\x00\xff",
        Decimal("1.10"), Decimal("-0E+5"), Decimal("1E+999999"), UUID(int=0), date.min, date.max,
        time(1, 2, 3, 4), time(1, tzinfo=UTC), time(2, fold=1), time(2, tzinfo=BERLIN),
        timedelta.min, timedelta.max, timedelta(microseconds=-1),
        datetime.min, datetime.max, datetime(2026, 1, 1, fold=1), datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=-3, seconds=7, microseconds=9))),
        datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN), datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
        datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN),  # a time that never was
        {"k": [{"n": (1, {"$x": b"y"})}]},
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_it_comes_back_from_both_tiers(value: object) -> None:
    for back in (through_kv(value), through_sql(value)):
        assert back == value
        assert type(back) is type(value)
        assert repr(back) == repr(value)
    assert values.encode(value)[0][0] == "j"


@pytest.mark.parametrize(
    "value",
    [-0.0, 1e16, -1e16, 1e22, 1.7976931348623157e308, "a\x00b", {"\x00": 1}, "\ud800", {"\udfff": 1}, "\ud83d\ude00",
     {"a": "\ud800", "$": (1,)}, {"\ud800": 1, "$x": {"$y": "\x00"}}, (b"", -0.0), [[1e300]]],
    ids=ascii,
)  # fmt: skip
def test_what_jsonb_would_change_has_its_bytes_kept(value: object) -> None:
    codec, body = values.encode(value)
    text, raw = values.json_text(codec, body)
    assert codec == "r"
    assert raw == body
    assert text is not None
    assert "\\u0000" not in text
    text.encode()
    for back in (through_kv(value), through_sql(value)):
        assert back == value
        assert repr(back) == repr(value)


def test_the_projection_can_be_queried() -> None:
    value = {"name": "a\x00b", "\ud800": ("\ud83d", 1)}
    text, _ = values.json_text(*values.encode(value))
    assert text == '{"name":"a\ufffdb","\ufffd":{"$tuple":["\ufffd",1]}}'


@pytest.mark.parametrize("value", [{"\x00": {"$str": []}}, {"\x00": {"$dict": 5}}, {"$str": "\x00"}], ids=ascii)
def test_the_projection_takes_a_users_dict_for_no_tag(value: Any) -> None:
    text, _ = values.json_text(*values.encode(value))
    assert msgspec.json.decode(text or "") == msgspec.json.decode(
        msgspec.json.encode(value).replace(b"\\u0000", "\ufffd".encode())
    )
    assert through_sql(value) == value


def test_a_named_offset_keeps_its_name() -> None:
    at = datetime(2026, 7, 1, tzinfo=timezone(timedelta(hours=2), "CEST"))
    assert through_kv(at).tzname() == "CEST"


def test_offsets_and_names_of_any_kind_survive() -> None:
    for offset in (timedelta(microseconds=1), timedelta(microseconds=-1), timedelta(seconds=1)):
        for zone in (timezone(offset), timezone(offset, "\ud800\x00")):
            at = datetime(2026, 7, 1, tzinfo=zone)
            assert repr(through_sql(at)) == repr(at)
            assert repr(through_sql(at.timetz())) == repr(at.timetz())


def test_the_order_of_keys_is_kept_in_kv() -> None:
    assert list(through_kv({"b": 1, "a": 2, "": 3})) == ["b", "a", ""]


def test_each_decoding_is_the_callers_own() -> None:
    codec, body = values.encode({"a": [1]})
    first = values.decode(codec, body)
    first["a"].append(2)
    assert values.decode(codec, body) == {"a": [1]}


class Colour(enum.Enum):
    RED = "red"


class Text(str):
    __slots__ = ()


class Zone(tzinfo):
    def utcoffset(self, at: datetime | None) -> timedelta:
        return timedelta(0)


class Point(namedtuple("Point", "x y")):
    __slots__ = ()


@dataclasses.dataclass
class Trip:
    when: Any = None
    legs: Any = None


class ListLike(list[int]):
    pass


@pytest.mark.parametrize(
    ("value", "path", "why"),
    [
        ({"plan": [0, 1, 2, {"when": Zone}]}, "value.plan[3].when:", "type"),
        ({"plan": [{"when": datetime(2026, 1, 1, tzinfo=Zone())}]}, "value.plan[0].when:", "tzinfo"),
        (Trip(legs=(1, Colour.RED)), "value.legs[1]:", "Colour"),
        (math.nan, "value:", "finite"),
        ([math.inf], "value[0]:", "finite"),
        ({"a": {"b": [-math.inf]}}, "value.a.b[0]:", "finite"),
        ((math.nan,), "value[0]:", "finite"),
        ({"a b": math.nan}, "value['a b']:", "finite"),
        ({"n": 10**4000}, "value.n:", "4000 digits"),
        ({1: 2}, "value[1]:", "key"),
        ({True: 2}, "value[True]:", "key"),
        ({Text("a"): 2}, "value['a']:", "key"),
        ({"a": Text("b")}, "value.a:", "Text"),
        (Colour.RED, "value:", "Colour"),
        (enum.IntEnum("N", "ONE").ONE, "value:", "N"),  # type: ignore[attr-defined]  # made at run time
        (Point(1, 2), "value:", "Point"),
        (OrderedDict(a=1), "value:", "OrderedDict"),
        (Counter("aa"), "value:", "Counter"),
        (ListLike([1]), "value:", "ListLike"),
        ({"s": {Colour.RED}}, "value.s{}:", "Colour"),
        (bytearray(b"x"), "value:", "bytearray"),
        (memoryview(b"x"), "value:", "memoryview"),
        (1j, "value:", "complex"),
        (range(3), "value:", "range"),
        (object(), "value:", "object"),
        (Trip, "value:", "type"),
        (len, "value:", "builtin_function"),
        (msgspec.UNSET, "value:", "Unset"),
        (Decimal("NaN"), "value:", "finite"),
        (Decimal("Infinity"), "value:", "finite"),
        (ZoneInfo.no_cache("Europe/Berlin"), "value:", "ZoneInfo"),
        ({"at": datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo.no_cache("Europe/Berlin"))}, "value.at:", "tzinfo"),
    ],
    ids=lambda value: repr(value)[:40].split(" at 0x")[0],  # the same in each worker
)  # fmt: skip
def test_what_cannot_come_back_is_refused_by_its_path(value: object, path: str, why: str) -> None:
    with pytest.raises(RejectedError) as caught:
        values.encode(value)
    assert str(caught.value).startswith(path)
    assert why in str(caught.value)


def nested(depth: int, wrap: Any) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


WRAPS = [lambda v: [v], lambda v: {"a": v}, lambda v: (v,), lambda v: {"$x": v}, lambda v: Trip(legs=v)]


@pytest.mark.parametrize("wrap", WRAPS, ids=["list", "dict", "tuple", "$dict", "dataclass"])
def test_depth_ends_at_the_limit(wrap: Any) -> None:
    deepest = nested(limits.VALUE_DEPTH_MAX, wrap)
    back = through_sql(deepest)
    if not isinstance(deepest, Trip):
        assert back == deepest
    with pytest.raises(RejectedError, match="200"):
        values.encode(nested(limits.VALUE_DEPTH_MAX + 1, wrap))


def test_a_value_within_itself_is_refused() -> None:
    cycle: list[Any] = []
    cycle.append({"a": cycle})
    with pytest.raises(RejectedError, match="itself") as caught:
        values.encode(cycle)
    assert len(str(caught.value)) < 300


def test_a_call_stack_that_is_nearly_full() -> None:
    def deeper(levels: int) -> None:
        if levels:
            deeper(levels - 1)
        else:
            values.encode(nested(190, lambda v: (v,)))

    with pytest.raises(RejectedError, match="call stack"):
        deeper(700)


def test_large_values() -> None:
    text = "cenote " * 10_000
    codec, body = values.encode(text)
    assert codec == "jz"
    assert len(body) < len(text) / 2
    assert values.decode(codec, body) == text
    assert values.json_text(codec, body) == (f'"{text}"', None)
    with pytest.raises(RejectedError, match=str(limits.VALUE_BYTES_MAX)):
        values.encode("x" * limits.VALUE_BYTES_MAX)


def test_what_does_not_shrink_is_not_compressed() -> None:
    noise = random.Random(7).randbytes(limits.COMPRESS_BYTES_MIN)
    assert values.pack("j", noise) == ("j", noise)
    assert values.pack("j", b"x" * (limits.COMPRESS_BYTES_MIN - 1))[0] == "j"
    assert values.unpack(*values.pack("r", b"ab" * 20_000)) == ("r", b"ab" * 20_000)


def test_exact_bytes_in_sql_say_themselves_whether_they_are_compressed() -> None:
    for value in ("\x00" * 10, "\x00" * 50_000):
        codec, body = values.encode(value)
        text, raw = values.json_text(codec, body)
        assert values.from_sql(text, raw) == (codec, body)
        assert through_sql(value) == value


def test_a_body_too_large_for_jsonb_has_no_projection() -> None:
    value = "x" * limits.JSONB_BYTES_MAX
    codec, body = values.encode(value)
    assert values.json_text(codec, body) == (None, body)
    assert values.decode(*values.from_sql(None, body)) == value


@pytest.mark.parametrize(
    ("codec", "body"),
    [
        ("j", b""), ("j", b"{"), ("j", b"[1,]"), ("j", b"NaN"), ("j", b"1e400"), ("j", b"1" * 5000), ("j", b'"\xff"'),
        ("j", b"[" * 5000), ("j", b'{"$nope":1}'), ("j", b'{"$uuid":5}'), ("j", b'{"$uuid":"x"}'),
        ("j", b'{"$bytes":"%%"}'), ("j", b'{"$set":[[]]}'), ("j", b'{"$tuple":1}'), ("j", b'{"$datetime":["x"]}'),
        ("j", b'{"$datetime":["2026-01-01T00:00:00","No/Where",0]}'), ("j", b'{"$decimal":"x"}'),
        ("j", b'{"$timedelta":[1e300]}'), ("j", b'{"$str":[]}'), ("j", b'{"$dict":[1]}'),
        ("jz", b"x"), ("jz", zlib.compress(b"1")[:-1]), ("jz", zlib.compress(b"1") + b"1"), ("q", b"1"), ("", b"1"),
        ("jzz", b"1"),
    ],
    ids=ascii,
)  # fmt: skip
def test_broken_bytes_are_a_codec_error_that_carries_them(codec: str, body: bytes) -> None:
    with pytest.raises(CodecError) as caught:
        values.decode(codec, body)
    assert caught.value.raw == body


def test_a_body_that_unpacks_beyond_the_limit_is_not_unpacked() -> None:
    bomb = zlib.compress(b"0" * (limits.VALUE_BYTES_MAX + 10), 9)
    with pytest.raises(CodecError):
        values.decode("jz", bomb)


def test_broken_bytes_on_the_way_to_sql() -> None:
    for codec, body in (("j", b'"\xff"'), ("r", b'"$\\u0000'), ("q", b"1")):
        with pytest.raises(CodecError):
            values.json_text(codec, body)
    with pytest.raises(CodecError):
        values.from_sql(None, None)


# --- into a class -----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Plan:
    goal: str
    due: datetime
    price: Decimal
    tags: set[str]
    legs: tuple[int, ...] = ()
    raw: bytes = b""
    sub: "Plan | None" = None
    notes: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: int
    y: dict[str, Plan]


class Renamed(msgspec.Struct, rename="camel", tag="renamed", omit_defaults=True):
    step_count: int
    next_one: "Renamed | None" = None
    span: timedelta = timedelta(0)


class Row(msgspec.Struct, array_like=True, tag=True):
    a: int
    b: frozenset[int] = frozenset()


class Partly(msgspec.Struct):
    a: int | msgspec.UnsetType = msgspec.UNSET


class Model(pydantic.BaseModel):
    name: str = pydantic.Field(alias="theName")
    when: datetime
    inner: list["Model"] = []
    blob: bytes = b""


class Open(pydantic.BaseModel, extra="allow"):
    a: int


class Names(pydantic.RootModel[dict[str, tuple[int, int]]]):
    pass


@pydantic_dataclass
class Checked:
    n: int
    at: date


@dataclasses.dataclass
class Mixed:
    model: Model
    row: Row


PLAN = Plan("map", datetime(2026, 1, 1, tzinfo=BERLIN), Decimal("1.50"), {"a"}, (1, 2), b"\x00")
MODEL = Model(theName="x", when=datetime(2026, 1, 1), blob=b"\x01")


@pytest.mark.parametrize(
    "value",
    [
        PLAN,
        Plan("sub", datetime.min, Decimal(1), set(), sub=PLAN, notes=[1, {"$x": (1,)}]),
        Frozen(1, {"p": PLAN}),
        Renamed(1),
        Renamed(1, Renamed(2), timedelta(days=1)),
        Row(1, frozenset({2})),
        Partly(),
        Partly(3),
        MODEL,
        Model(theName="y", when=datetime.max, inner=[MODEL]),
        Open(a=1, b=[1, {"c": None}]),  # type: ignore[call-arg]  # an extra field
        Names({"a": (1, 2)}),
        Checked(n=1, at=date(2026, 1, 1)),
        Mixed(MODEL, Row(4)),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_an_object_comes_back_as_itself(value: Any) -> None:
    plain = through_sql(value)
    assert isinstance(plain, dict | list)
    back = values.decode_into(plain, type(value))
    assert back == value
    assert type(back) is type(value)


def test_objects_are_walked_at_any_depth() -> None:
    assert through_kv({"plans": [Frozen(1, {})]}) == {"plans": [{"x": 1, "y": {}}]}
    assert through_kv(Row(1)) == ["Row", 1, frozenset()]
    assert through_kv(Renamed(1))["type"] == "renamed"
    with pytest.raises(RejectedError, match=r"^value\.plans\[0\]\.y\.p\.tags\{\}:"):
        values.encode({"plans": [Frozen(1, {"p": Plan("x", datetime.min, Decimal(1), {Colour.RED})})]})  # type: ignore[arg-type]  # not a text


def test_an_object_with_a_field_never_set_is_refused() -> None:
    empty = Frozen.__new__(Frozen)
    with pytest.raises(RejectedError, match="Frozen"):
        values.encode([empty])
    with pytest.raises(RejectedError, match="Model"):
        values.encode(Model.model_construct())


@pytest.mark.parametrize("into", [Plan, Renamed, Model, Checked, int, Colour, object()])
def test_what_does_not_fit_is_a_codec_error(into: Any) -> None:
    with pytest.raises(CodecError, match="fit"):
        values.decode_into({"goal": 1}, into)
