"""How the dashboard writes values: cut, without secrets, and what changed from one to the next."""

from typing import Any

import pytest
from starlette.requests import Request

import cenote
from cenote.dashboard.differing import CHANGES_MAX, differences
from cenote.dashboard.rendering import asked, encoded, printable
from cenote.dashboard.showing import CHARS_MAX, HIDDEN, decoded, shown
from cenote.model import value as values
from cenote.model.entry import Stored, Version

HUSH = "hunter2"


def changes(old: Any, new: Any, key: str = "k") -> list[tuple[str, str | None, str | None]]:
    return [(one["path"], one["old"], one["new"]) for one in differences(key, old, new)["changes"]]


@pytest.mark.parametrize(
    "value",
    [
        {"password": HUSH}, [{"a": {"apiKey": HUSH}}], ({"token": HUSH},), cenote.ORMap({"pwd": HUSH}),
        {"m": cenote.ORMap({"client_secret": HUSH})}, cenote.LWWRegister({"Authorization": HUSH}),
        cenote.MVRegister({"cookie": HUSH}), cenote.AppendLog([{"credentials": HUSH}]),
    ],
    ids=repr,
)  # fmt: skip
def test_secrets_are_not_shown_however_deep(value: Any) -> None:
    assert HUSH not in shown("k", value)
    assert HIDDEN in shown("k", value)
    told = differences("k", None, value)
    assert HUSH not in repr(told)
    assert shown("db_password", HUSH) == HIDDEN


def test_a_secret_that_changed_says_so_and_no_more() -> None:
    assert changes({"password": HUSH, "a": 1}, {"password": "x", "a": 1}) == [("password", HIDDEN, HIDDEN)]
    assert changes({}, {"password": HUSH}) == [("password", None, HIDDEN)]
    assert HUSH not in repr(differences("api_token", HUSH, "line\n" + HUSH))


def test_a_value_is_written_no_further_than_it_is_shown() -> None:
    class Deep(list[Any]):
        def __iter__(self) -> Any:
            asked_for.append(len(asked_for))
            return super().__iter__()

    asked_for: list[int] = []
    text = shown("k", [Deep(["x" * 100]) for _ in range(200)])
    assert len(text) <= CHARS_MAX + 2
    assert text.endswith(" …")
    assert len(asked_for) < 50  # the rest is not looked at
    assert shown("k", {"a": (1, b"x"), "n": None}) == "{'a': (1, b'x'), 'n': None}"


def kept(codec: str, body: bytes) -> Stored:
    return Stored(
        version=Version(1, 1), sequence=1, codec=codec, body=body, deleted=False, written_us=0, expires_ms=None,
        clean=False, t0_ms=0, op="",
    )  # fmt: skip


def test_a_small_body_that_unpacks_to_much_is_left_alone() -> None:
    codec, body = values.encode(["y" * 100] * 20_000)
    assert codec.endswith("z")
    assert decoded("k", kept(codec, body)) == f"a value of {len(body):,} bytes as it is kept"
    codec, body = values.encode("abc " * 12_000)
    assert codec.endswith("z")
    assert decoded("k", kept(codec, body)).startswith("'abc abc")
    assert decoded("k", kept("q", b"{")) == "a value of 1 bytes as it is kept"
    assert decoded("k", kept("j", b"{")).startswith("unreadable")
    assert decoded("k", kept("jz", b"{")).startswith("unreadable")


def test_what_changed_is_told_by_path() -> None:
    old = {"goal": "map", "legs": [1, 2, 3], "deep": {"a": 1}, "same": [1]}
    new = {"goal": "dive", "legs": [1, 5], "deep": {"a": True}, "same": [1], "by": "rope"}
    assert changes(old, new) == [
        ("goal", "'map'", "'dive'"), ("legs[1]", "2", "5"), ("legs[2]", "3", None), ("deep.a", "1", "True"),
        ("by", None, "'rope'"),
    ]  # fmt: skip
    assert changes(1, 1.0) == [("", "1", "1.0")]
    assert changes(old, old) == []
    assert differences("k", 1, None, deleted=True)["changes"][0]["new"] is None
    assert differences("k", None, None, was_deleted=True)["changes"][0]["new"] == "None"


def test_long_texts_are_compared_by_line() -> None:
    old = "\n".join(f"line {number}" for number in range(100))
    (change,) = differences("k", {"t": old}, {"t": old.replace("line 50", "line fifty")})["changes"]
    assert change["lines"] == ["@@ -50,3 +50,3 @@", " line 49", "-line 50", "+line fifty", " line 51"]
    (change,) = differences("k", old, "\n".join(f"other {number}" for number in range(100)))["changes"]
    assert len(change["lines"]) == 61
    (change,) = differences("k", "a\n" * 100_000, "b\n" * 100_000)["changes"]
    assert change["lines"] is None
    assert len(change["new"]) < 300


def test_differences_are_bounded() -> None:
    found = differences("k", list(range(1_000)), list(range(1, 1_001)))
    assert (len(found["changes"]), found["more"]) == (CHANGES_MAX, True)
    same = differences("k", [[0] * 200] * 200, [[0] * 200] * 200)
    assert (same["changes"], same["more"]) == ([], True)  # it was not looked at to the end, and says so


@pytest.mark.parametrize("name", ["a b/c?d=e&f#g", "\u202etxt.exe", "\ud800", "nul\0", "ü", "%41", "+"])
def test_any_name_goes_through_an_address_and_is_printed_as_it_is(name: str) -> None:
    query = f"name={encoded(name)}".encode("ascii")
    assert asked(Request({"type": "http", "query_string": query, "headers": []})) == {"name": name}
    assert printable(name).isprintable()
    assert printable(name).encode()


def test_an_address_that_is_no_text_is_read_all_the_same() -> None:
    assert asked(Request({"type": "http", "query_string": b"name=%FF", "headers": []})) == {"name": "\ufffd"}
