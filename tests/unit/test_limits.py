"""Limits: a positive number each, and the relations that other parts lean on."""

from cenote import limits
from cenote.config import load
from cenote.model.key import encode_key, sql_key

NUMBERS = {name: value for name, value in vars(limits).items() if name.isupper()}


def test_every_limit_is_a_positive_number() -> None:
    assert len(NUMBERS) > 30
    assert {name: value for name, value in NUMBERS.items() if type(value) is not int or value <= 0} == {}


def test_the_longest_keys_fit_a_row_of_the_primary_key() -> None:
    """An index row of PostgreSQL's ends at 2,704 bytes; each kind of character costs the two spellings differently."""
    tried = 0
    for char in ("a", "é", "€", "😀", "\x00", "\x1a", "\ud800", "*"):
        length = min(limits.KEY_CHARS_MAX, limits.SUBJECT_BYTES_MAX // len(encode_key(char)))
        key = char * length
        assert len(encode_key(key)) <= limits.SUBJECT_BYTES_MAX
        assert len(sql_key(key).encode()) <= limits.SQL_KEY_BYTES_MAX
        tried += 1
    assert tried == 8


def test_the_defaults_respect_the_limits() -> None:
    config = load()
    assert config.state.ttl_s * 1000 > limits.EVICT_AGE_MIN_MS
    assert config.kv.bytes_max > limits.VALUE_BYTES_MAX
    assert config.flush.batch_count_max <= config.flush.backlog_count_max
