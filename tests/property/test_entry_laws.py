"""Laws of versions and envelopes."""

from contextlib import suppress
from datetime import UTC

from hypothesis import given
from hypothesis import strategies as st

from cenote.errors import CodecError
from cenote.model.entry import Clean, Envelope, Version, from_us, header, parse, to_us

NUMBERS = st.integers(0, 2**63 - 1)
VERSIONS = st.builds(Version, NUMBERS, NUMBERS)
CLEANS = st.none() | st.builds(Clean, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
OPS = st.from_regex(r"[A-Za-z0-9_-]{1,22}\.[0-9]{1,19}", fullmatch=True)


@given(VERSIONS)
def test_a_version_is_its_text(version: Version) -> None:
    assert Version.parse(str(version)) == version


@given(VERSIONS, VERSIONS)
def test_versions_are_totally_ordered_by_epoch_first(one: Version, other: Version) -> None:
    assert (one < other) + (one == other) + (one > other) == 1
    if one.epoch != other.epoch:
        assert (one < other) == (one.epoch < other.epoch)


@given(st.sampled_from(["j", "r", "jz", "rz"]), OPS, st.none() | NUMBERS, CLEANS)
def test_an_envelope_is_its_line(codec: str, op: str, expires_ms: int | None, clean: Clean | None) -> None:
    line = header(codec, op, expires_ms, clean)
    assert parse(line) == Envelope(codec, op, expires_ms, clean)
    assert line.isascii()
    assert line.index(b"\r\n") == len(line) - 2


@given(st.binary(max_size=60) | st.from_regex(rb"(Cenote: )?1;j;w\.1;[0-9]*;[0-9.]*(\r\n)?", fullmatch=True))
def test_any_line_parses_or_raises_codec_error(line: bytes) -> None:
    with suppress(CodecError):
        parse(line)


@given(st.datetimes(timezones=st.just(UTC)))
def test_microseconds_lose_nothing(at: object) -> None:
    assert from_us(to_us(at)) == at  # type: ignore[arg-type]  # hypothesis types it as datetime
