"""Versions, the envelope in its header line, and entries."""

import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from cenote import limits
from cenote.errors import CodecError, RejectedError
from cenote.model import value as values
from cenote.model.entry import (
    Clean,
    Entry,
    Envelope,
    Stored,
    Tier,
    UnknownFormat,
    Version,
    from_ms,
    from_us,
    header,
    parse,
    to_us,
    ttl_ms,
    writer,
)

CLEAN = Clean(3, 41, 1_790_000_000_000_001, 1_790_000_000_500)


@pytest.mark.parametrize("expires_ms", [None, 0, 1_790_000_000_000])
@pytest.mark.parametrize("clean", [None, CLEAN])
def test_an_envelope_round_trips(expires_ms: int | None, clean: Clean | None) -> None:
    line = header("jz", "w8f3.17", expires_ms, clean)
    assert line.startswith(b"Cenote: 1;")
    assert line.endswith(b"\r\n")
    assert line.count(b"\n") == 1
    expected = Envelope("jz", "w8f3.17", expires_ms, clean)
    value = line.removeprefix(b"Cenote: ").rstrip()
    assert parse(line) == parse(line.rstrip()) == parse(value) == expected


def test_the_line_is_what_the_module_promises() -> None:
    assert header("j", "w.1", 5, Clean(1, 2, 3, 4)) == b"Cenote: 1;j;w.1;5;1.2.3.4\r\n"
    assert header("j", "w.1") == b"Cenote: 1;j;w.1;;\r\n"


@pytest.mark.parametrize("line", [b"Cenote: 2;j;w.1;;", b"2;anything at all", b"Cenote: 10", b"999;;;;;;;;"])
def test_a_later_format_is_told_apart(line: bytes) -> None:
    with pytest.raises(UnknownFormat, match="format"):
        parse(line)


@pytest.mark.parametrize(
    "line",
    [b"", b"Cenote: ", b"Cenote: 1", b"1;j;w.1;", b"1;j;w.1;;;", b"1;j;w.1;x;", b"1;j;w.1;;1.2.3", b"1;j;w.1;;1.2.3.x",
     b"x;j;w.1;;", b"\xff;j;w.1;;", b"Nats: 1;j;w.1;;"],
)  # fmt: skip
def test_what_is_no_envelope(line: bytes) -> None:
    with pytest.raises(CodecError) as caught:
        parse(line)
    assert not isinstance(caught.value, UnknownFormat)
    assert caught.value.raw == line


def test_versions_are_ordered_by_epoch_then_revision() -> None:
    assert Version(1, 99) < Version(2, 1) < Version(2, 10)
    assert str(Version(2, 10)) == "2.10"
    assert Version.parse(str(Version(2, 10))) == Version(2, 10)
    assert pickle.loads(pickle.dumps(Version(2, 10))) == Version(2, 10)


@pytest.mark.parametrize(
    "text", ["", "1", "1.", ".1", "1.2.3", "01.2", "1.02", "-1.2", "1.2 ", "+1.2", "١.٢", "1." + "9" * 99]
)
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(RejectedError, match="version"):
        Version.parse(text)


def stored(value: object, **changes: Any) -> Stored:
    codec, body = values.encode(value)
    plain = Stored(Version(1, 7), 9, codec, body, False, 1_790_000_000_000_001, None, False, 0, "w8f3.17")
    return msgspec.structs.replace(plain, **changes)


def test_an_entry_tells_the_user_everything() -> None:
    entry = Entry.of(
        stored({"a": (1,)}, expires_ms=1_790_000_000_500), agent="scout", key="plan", tier=Tier.DISTRIBUTED_KV
    )
    assert entry == Entry(
        key="plan",
        value={"a": (1,)},
        version=Version(1, 7),
        written_at=datetime(2026, 9, 21, 14, 13, 20, 1, UTC),
        expires_at=datetime(2026, 9, 21, 14, 13, 20, 500_000, UTC),
        tier=Tier.DISTRIBUTED_KV,
        writer="w8f3",
        agent="scout",
        change="put",
        stale=False,
    )


def test_a_delete_and_an_expiry_have_no_value() -> None:
    gone = stored(None, deleted=True, body=b"")
    assert Entry.of(gone, agent="a", key="k", tier=Tier.RELATIONAL_DB).change == "delete"
    over = Entry.of(stored(5), agent="a", key="k", tier=Tier.MEMORY_CACHE, change="expiry", stale=True)
    assert (over.change, over.value, over.stale) == ("expiry", None, True)


def test_an_entry_decodes_into_a_class() -> None:
    entry = Entry.of(stored([1, 2]), agent="a", key="k", tier=Tier.MEMORY_CACHE, into=tuple)
    assert entry.value == (1, 2)


def test_expiry_is_a_moment_of_server_time() -> None:
    entry = stored(1, expires_ms=1000)
    assert [entry.expired(now) for now in (999, 1000, 1001)] == [False, True, True]
    assert not stored(1).expired(2**60)


def test_times_are_exact() -> None:
    for us in (0, 1, -1, 1_790_000_000_123_457, to_us(datetime.max.replace(tzinfo=UTC))):
        assert to_us(from_us(us)) == us
        assert from_us(us).tzinfo is UTC
    assert from_ms(1001) == datetime(1970, 1, 1, 0, 0, 1, 1000, UTC)
    assert to_us(datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))) == 0


def test_the_writer_is_the_first_part_of_the_operation_id() -> None:
    assert writer("w8f3.17") == "w8f3"
    assert writer("") == ""


def test_a_time_to_live() -> None:
    assert ttl_ms(None) is None
    assert ttl_ms(timedelta(seconds=1.5)) == 1500
    assert ttl_ms(timedelta(seconds=limits.TTL_S_MAX)) == limits.TTL_S_MAX * 1000


@pytest.mark.parametrize(
    "ttl",
    [timedelta(0), timedelta(seconds=-1), timedelta(microseconds=999), timedelta.max, 5, 1.5, True, "5", float("nan")],
)
def test_a_time_to_live_that_makes_no_sense(ttl: Any) -> None:
    with pytest.raises(RejectedError, match="ttl"):
        ttl_ms(ttl)
