"""Times on the wire, and the lower bound of the server's clock."""

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cenote.kv import clock
from cenote.kv.message import Delivery, delivery, header_value, last_value

moments = st.integers(0, 4_000_000_000 * 1_000_000)


@given(moments, st.integers(0, 9), st.integers(0, 999))
def test_server_times_to_the_microsecond(time_us: int, decimals: int, nanos: int) -> None:
    seconds, micros = divmod(time_us, 1_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{micros:06}{nanos:03}"[:decimals].rstrip("0")  # the server leaves trailing zeros out
    wanted = seconds * 1_000_000 + int(fraction[:6].ljust(6, "0"))
    assert clock.parse_time_us(f"{text}.{fraction}Z".replace(".Z", "Z").encode()) == wanted


def test_the_clock_is_a_lower_bound_and_believes_a_step_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    server = clock.ServerClock()
    assert server.now_ms() is None
    server.learn(5_000_000)
    assert server.now_ms() == 5_000_000
    now[0] += 1
    assert server.now_ms() == 5_001_000
    server.learn(5_000_950)  # 50 ms on the way: the better bound stays
    assert server.now_ms() == 5_001_000
    server.learn(5_001_020)
    assert server.now_ms() == 5_001_020
    server.learn(4_000_000)
    assert server.now_ms() == 4_000_000
    now[0] += 20
    server.learn(4_019_900)  # an old bound is not kept for ever: the clocks may drift apart
    assert server.now_ms() == 4_019_900
    server.reset()
    assert server.now_ms() is None


def test_both_forms_of_an_ack_subject() -> None:
    short = b"$JS.ACK.KV_A.flush.2.1000.7.1795381293719203041.12"
    long = b"$JS.ACK.hub.hash.KV_A.flush.2.1000.7.1795381293719203041.12"
    for reply in (short, long, long + b".token"):
        assert delivery(reply) == Delivery(1000, 1795381293719203, 2)


def test_header_lines() -> None:
    header = b"NATS/1.0\r\nA: 1\r\nNats-Sequence: 9\r\nA: 2\r\n\r\n"
    assert header_value(header, b"A: ") == b"1"
    assert last_value(header, b"A: ") == b"2"
    assert header_value(header, b"B: ") is None
    assert last_value(header, b"Sequence: ") is None
