"""What stands in a record of the conflict log, and what is left out of one that is too large."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cenote import limits
from cenote.engine import conflict_log
from cenote.errors import CodecError, RejectedError
from cenote.model import value as values

SIZE = 40_000  # so that one of these fits, and two do not


def record(**changed: Any) -> dict[str, Any]:
    return {
        "agent": "scout", "key": "k", "strategy": "lww", "outcome": "incoming", "writer": "w", "current": 1,
        "incoming": 2, "result": None, "discarded": ["current"], "versions": ["1.1", "1.2"], "reason": None, **changed,
    }  # fmt: skip


def test_a_record_comes_back_with_its_result() -> None:
    for outcome, result in (("current", 1), ("incoming", 2), ("merged", 3), ("refused", None)):
        stored = values.decode(
            *conflict_log._encoded(record(outcome=outcome, result=3 if outcome == "merged" else None))
        )
        found = conflict_log._decoded("001700000000000.w.1f", stored)
        assert (found.result, found.operation, found.versions) == (result, "w.1f", ("1.1", "1.2"))
        assert found.at == datetime.fromtimestamp(1_700_000_000, UTC)


@pytest.mark.parametrize("key", ["", "x.w.1", "001700000000000", "9" * 40 + ".w.1"])
def test_what_is_no_record_is_a_codec_error(key: str) -> None:
    with pytest.raises(CodecError):
        conflict_log._decoded(key, record() if key != "001700000000000" else {"agent": "scout"})


@pytest.mark.parametrize(
    ("discarded", "left_out"),
    [(["current"], ["result", "incoming"]), (["incoming"], ["result", "current"]), ([], ["result", "current"])],
)
def test_what_is_not_discarded_is_left_out(
    monkeypatch: pytest.MonkeyPatch, discarded: list[str], left_out: list[str]
) -> None:
    monkeypatch.setattr(limits, "VALUE_BYTES_MAX", SIZE + 10_000)
    large = record(current="a" * SIZE, incoming="b" * SIZE, result="c" * SIZE, discarded=discarded, reason="why")
    kept = values.decode(*conflict_log._encoded(large))
    assert [name for name in ("result", "current", "incoming") if kept[name] is None] == left_out
    assert kept["reason"] == "why; too large to be kept here: " + ", ".join(left_out)


def test_both_discarded_and_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VALUE_BYTES_MAX", SIZE + 10_000)
    with pytest.raises(RejectedError, match="does not fit into the conflict log") as told:
        conflict_log._encoded(record(current="a" * SIZE, incoming="b" * SIZE, discarded=["current", "incoming"]))
    assert told.value.key == "k"


def test_since_is_a_moment_or_a_time_ago() -> None:
    now_ms = 1_700_000_000_000
    for since in (60, 60.0, timedelta(minutes=1), datetime.fromtimestamp(now_ms / 1000 - 60, UTC)):
        assert conflict_log.wanted(now_ms, None, None, None, since, 1).since_ms == now_ms - 60_000
    assert conflict_log.wanted(now_ms, None, None, None, None, 1).since_ms == 0
    assert conflict_log.wanted(now_ms, None, None, None, 1e15, 1).since_ms == 0
