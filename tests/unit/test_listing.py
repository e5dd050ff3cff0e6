"""What is known of an entry without taking its envelope apart."""

import pytest

from cenote.engine import entries
from cenote.engine.epoch import Epochs
from cenote.kv.message import Message
from cenote.model import entry
from cenote.model.entry import Version

COPY = entry.header("j", "writer.1", None, entry.Clean(1, 7, 5, 3))


@pytest.mark.parametrize(
    "line",
    [
        entry.header("j", "writer.1"), entry.header("r", "writer.1", 99), COPY, COPY + entries.TOMBSTONE, b"",
        b"Cenote: 99;whatever\r\n", b"Cenote: 99;whatever;\r\n", b"Cenote: 1;j;w.1;;1.2\r\n", b"Other: 1\r\n",
    ],
)  # fmt: skip
def test_the_version_of_an_entry_is_that_of_the_whole(line: bytes) -> None:
    message = Message("s", 12, 150, b"NATS/1.0\r\n" + line + b"\r\n", b"1")
    epochs = Epochs("store", "created", (1, 2), (100, 200))
    assert entries.version_of(message, epochs) == entries.listed(message, epochs).version
    if line == COPY:
        assert entries.version_of(message, epochs) == Version(1, 7)
