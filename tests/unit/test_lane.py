"""The fast lane cuts any chunking of a byte stream into the same frames, and nats-py's private names still stand."""

import itertools
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.errors import ProtocolError

from cenote.kv import lane
from cenote.kv.road import client_frames, header_block

OURS, FOREIGN = 1_000_000, 7
Frame = tuple[bytes, bytes, bytes, bytes]

words = st.binary(min_size=1, max_size=12).map(lambda raw: b"s." + raw.hex().encode())
payloads = st.one_of(st.binary(max_size=40), st.just(b"\r\n"), st.just(b"MSG a 1 0\r\n\r\n"), st.just(b"x" * 5000))
headers = st.one_of(
    st.just(b""), st.just(b"NATS/1.0 503\r\n\r\n"), words.map(lambda word: b"NATS/1.0\r\nA: %b\r\n\r\n" % word)
)
controls = st.sampled_from(
    [b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b'INFO {"server_id":"a b"}\r\n', b"-ERR 'Permissions Violation'\r\n"]
)
messages = st.tuples(st.sampled_from([OURS, FOREIGN]), words, st.one_of(st.just(b""), words), headers, payloads)


def wire(sid: int, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> bytes:
    names = subject + b" %d" % sid + (b" " + reply if reply else b"")
    if header:
        total = len(header) + len(payload)
        return b"HMSG %b %d %d\r\n%b%b\r\n" % (names, len(header), total, header, payload)
    return b"MSG %b %d\r\n%b\r\n" % (names, len(payload), payload)


def parser(frames: list[Frame]) -> lane.LaneParser:
    return lane.LaneParser(Client(), {OURS: lambda *frame: frames.append(frame)})


@given(st.lists(st.one_of(messages, controls), max_size=12), st.lists(st.integers(0, 12_000), max_size=30))
def test_any_chunking_gives_the_same_frames(parts: list[Any], cuts: list[int]) -> None:
    stream, expected, others = b"", [], b""
    for part in parts:
        piece = part if isinstance(part, bytes) else wire(*part)
        stream += piece
        if isinstance(part, tuple) and part[0] == OURS:
            expected.append(part[1:])
        else:
            others += piece
    edges = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    frames: list[Frame] = []
    lane_parser = parser(frames)
    rest = b"".join(lane_parser.feed(stream[a:b]) for a, b in itertools.pairwise(edges))
    assert frames == expected
    assert rest == others


def test_split_at_every_byte() -> None:
    frame = (b"s.a", b"r.b", b"NATS/1.0\r\nA: 1\r\n\r\n", b"\r\nbody\r\n")
    stream = b"PING\r\n" + wire(OURS, *frame) + wire(FOREIGN, *frame) + wire(OURS, b"s.c", b"", b"", b"")
    for cut in range(len(stream) + 1):
        frames: list[Frame] = []
        lane_parser = parser(frames)
        rest = lane_parser.feed(stream[:cut]) + lane_parser.feed(stream[cut:])
        assert frames == [frame, (b"s.c", b"", b"", b"")]
        assert rest == b"PING\r\n" + wire(FOREIGN, *frame)


def test_a_large_payload_in_small_pieces_takes_linear_time() -> None:
    def seconds(size: int) -> float:
        stream = wire(OURS, b"s", b"", b"", b"x" * size)
        frames: list[Frame] = []
        lane_parser = parser(frames)
        start = time.process_time()
        for at in range(0, len(stream), 512):
            lane_parser.feed(stream[at : at + 512])
        assert len(frames[0][3]) == size
        return time.process_time() - start

    seconds(1 << 20)
    # Sixteen times the bytes: 16 times the time, or 256 times if each piece copied what came before.
    large, small = (min(seconds(size) for _ in range(3)) for size in (1 << 24, 1 << 20))
    assert large < 80 * max(small, 0.0005)


def test_a_failing_handler_does_not_end_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    frames: list[Frame] = []

    def handler(*frame: bytes) -> None:
        if not frames:
            frames.append((b"", b"", b"", b""))
            raise RuntimeError("handler")
        frames.append((frame[0], frame[1], frame[2], frame[3]))

    lane.LaneParser(Client(), {OURS: handler}).feed(wire(OURS, b"a", b"", b"", b"") * 2)
    assert len(frames) == 2
    assert "callback failed" in caplog.text


def test_an_endless_control_line_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        parser([]).feed(b"x" * 70_000)


async def test_what_is_not_ours_reaches_nats_py() -> None:
    nc = Client()
    seen: list[str] = []

    async def note(name: str) -> None:
        seen.append(name)

    lane_parser = lane.LaneParser(nc, {})
    nc._process_ping = lambda: note("ping")
    nc._process_pong = lambda: note("pong")
    nc._process_info = lambda info: note(info["server_id"])
    nc._process_err = note
    for chunk in (b"PI", b"NG\r\nPONG", b'\r\nINFO {"server_id":"x"}\r\n-ERR \'Bad', b" Thing'\r\n"):
        await lane_parser.parse(chunk)
    assert seen == ["ping", "pong", "x", "'bad thing'"]


def test_the_private_names_of_nats_py_still_stand() -> None:
    assert lane.names_hold(), "nats-py moved its private names: adapt kv/lane.py, or narrow the version range"
    nc = Client()
    assert lane.install(nc, {})
    assert isinstance(nc._ps, lane.LaneParser)


def test_without_the_private_names_the_public_road_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "names_hold", lambda: False)
    nc = Client()
    before = nc._ps
    assert not lane.install(nc, {})
    assert nc._ps is before


def test_frames_for_the_public_road() -> None:
    frames = b"PUB a.b 2\r\nhi\r\nHPUB c r.1 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nxy\r\nPUB d e 0\r\n\r\n"
    assert client_frames(frames) == [
        ("a.b", "", None, b"hi"),
        ("c", "r.1", {"A": "b"}, b"xy"),
        ("d", "e", None, b""),
    ]


def test_header_blocks_from_the_public_road() -> None:
    assert header_block(None) == b""
    assert header_block({"A": "b"}) == b"NATS/1.0\r\nA: b\r\n\r\n"
    assert header_block({"Status": "503"}) == b"NATS/1.0 503\r\n\r\n"
    status = {"Status": "204", "Description": "EOB", "Nats-Num-Pending": "2"}
    assert header_block(status) == b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 2\r\n\r\n"
