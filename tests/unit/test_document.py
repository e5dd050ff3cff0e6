"""Documents: under whose name a change goes, what is refused, and what a process without Loro can still do."""

import copy
import os
import pickle
import sys
from collections.abc import Callable
from typing import Any

import loro
import pytest

import cenote
from cenote.errors import CodecError, RejectedError, SetupError
from cenote.model import value as values
from cenote.model.merging import document, kind_of


def written(text: str = "hello") -> cenote.Document:
    one = cenote.Document()
    one.doc.get_text("t").insert(0, text)
    return one


def stored(one: Any) -> Any:
    return values.decode(*values.encode(one))


def step(state: cenote.Document, place: int = 0) -> cenote.Document:
    """What `update` does with the value that it has read."""
    given = state.copy()
    given.doc.get_text("t").insert(place, "x")
    return stored(given.settle(state, "p"))


def test_what_is_in_it_is_plain_json_beside_the_state_and_its_kind_is_seen_at_a_glance() -> None:
    one = written()
    one.doc.get_map("m").insert("a", {"$b": 1, "c": [1.5, None, b"raw"]})
    one.doc.get_list("empty")
    codec, body = values.encode(one)
    assert body.startswith(b'{"$loro":{"value":{"m":{"a":{"$b":1,')
    assert kind_of(codec, body) == kind_of(*values.encode(written("x" * 9_999))) == "loro"
    assert stored(one).value == one.value == {"m": {"a": {"$b": 1, "c": [1.5, None, b"raw"]}}, "t": "hello"}
    assert stored(one) == one


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, stored, lambda one: pickle.loads(pickle.dumps(one))]
)  # fmt: skip
def test_no_two_documents_ever_write_under_one_name(again: Callable[[Any], Any]) -> None:
    one = written()
    text = one.doc.get_text("t")
    other = again(one)
    text.insert(0, "A")
    other.doc.get_text("t").insert(5, "B")
    assert one.doc.peer_id != other.doc.peer_id
    settled = one.settle(None, "p")
    text.insert(0, "late ")  # through a container from before
    third = stored(settled)
    third.doc.get_text("t").insert(0, "C")  # goes on under the name that was left
    merged = one.merge(other).merge(third)
    assert sorted(merged.value["t"].replace("late ", "").replace("hello", "")) == ["A", "B", "C"]
    assert merged == third.merge(other).merge(one)


def test_a_process_that_changes_a_document_again_and_again_is_one_peer() -> None:
    state = stored(written().settle(None, "p"))
    for _ in range(20):
        state = step(state)
    assert len(state.actors) == 1
    beaten = state.copy()
    beaten.doc.get_text("t").insert(0, "lost")
    beaten.settle(state, "p")  # never stored: its numbers are not given out again
    state = step(state)
    assert len(state.actors) == 2
    assert "lost" in state.merge(beaten).value["t"]


def test_a_document_that_is_put_again_and_again_goes_on_under_its_name() -> None:
    one = written()
    text = one.doc.get_text("t")
    there: cenote.Document | None = None
    for _ in range(5):
        text.insert(0, "x")
        settled = one.settle(there, "p")
        one.adopt(settled)
        there = stored(settled)
        assert there == one
    assert len(one.actors) == 1
    with pytest.raises(RejectedError, match="adopt"):
        one.adopt(written())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # the child only writes to a pipe
def test_a_forked_process_writes_under_a_name_of_its_own() -> None:
    one = written()
    text = one.doc.get_text("t")
    document._leave(7, 1)
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text.insert(0, "child ")
            os.write(sink, pickle.dumps((one, document._left)))
        finally:
            os._exit(0)
    os.close(sink)
    with os.fdopen(source, "rb") as answer:
        theirs, left = pickle.load(answer)
    os.waitpid(child, 0)
    text.insert(0, "parent ")
    assert left == {}
    assert len(theirs.actors - {str(one.doc.peer_id)}) == 1
    assert sorted(one.merge(theirs).value["t"].split()) == ["child", "hello", "parent"]


def test_begun_anew_it_has_the_same_content_and_no_history() -> None:
    one = written()
    for _ in range(50):
        one.doc.get_text("t").insert(0, "x")
        one.doc.get_text("t").delete(0, 1)
    one = one.merge(written("!"))
    one.doc.get_text("t").mark(0, 2, "mine", True)
    fresh = one.fresh()
    assert fresh.value == one.value
    assert len(fresh.actors) == 1
    assert len(values.encode(fresh)[1]) < len(values.encode(one)[1])


def shallow() -> cenote.Document:
    source, one = written(), cenote.Document()
    one.doc.import_(source.doc.export(loro.ExportMode.ShallowSnapshot(source.doc.oplog_frontiers)))
    return one


def checked_out() -> cenote.Document:
    one = written()
    one.doc.checkout(loro.Frontiers())
    return one


def not_finite() -> cenote.Document:
    one = cenote.Document()
    one.doc.get_map("m").insert("a", float("nan"))
    return one


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: values.encode(shallow()), "shallow"),
        (lambda: values.encode(checked_out()), "checked out"),
        (lambda: values.encode(not_finite()), r"value.value.m.a: nan is no finite number"),
        (lambda: written().merge(cenote.ORSet()), "Document and ORSet"),  # type: ignore[arg-type]  # must be refused
        (lambda: cenote.ORMap({"d": written()}), "history of its own"),
    ],
)
def test_what_cannot_be_kept_is_refused(attempt: Callable[[], Any], words: str) -> None:
    with pytest.raises(RejectedError, match=words):
        attempt()


@pytest.mark.parametrize(
    "body",
    [b"{}", b"1", b'{"value":{},"state":"aGk="}', b'{"value":{},"state":"?"}', b'{"value":{},"state":1}'],
)  # fmt: skip
def test_malformed_stored_forms_are_codec_errors(body: bytes) -> None:
    with pytest.raises(CodecError):
        values.decode("j", b'{"$loro":' + body + b"}")


def test_without_loro_a_stored_document_is_shown_and_copied_and_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codec, body = values.encode(written())
    monkeypatch.setitem(sys.modules, "loro", None)
    one = values.decode(codec, body)
    assert one.value == {"t": "hello"}
    assert values.encode(one.settle(None, "p")) == (codec, body)
    assert "hello" in repr(one)
    for attempt in (cenote.Document, lambda: one.doc, lambda: one.merge(one)):
        with pytest.raises(SetupError, match=r"pip install 'cenote\[documents\]'"):
            attempt()
