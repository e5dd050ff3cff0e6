"""A rich document: text, lists, maps and trees that merge, by Loro (`pip install 'cenote[documents]'`).

Stored as `{"$loro": {"value": <what is in it, for SQL>, "state": <Loro's snapshot, base64>}}`. The flow carries bytes
and never needs Loro; without it a stored document shows its `value`, can be copied to another key, and says which
extra is missing when it is asked for more.

**Why nothing is renamed.** Loro names a change by (peer, number), and its join is commutative, associative and
idempotent if no such name is ever given to two changes. A document is lent to its user (`doc`) under a peer of its
own: 64 random bits, so no other process has it; anew in a copy and in an unpickled or decoded one, which are not lent
yet; and anew, by a hook, in a forked process. So changes are under their final names from the start, settling is a
join, and adopting is one, too. (`Merging`'s dots and contexts are not used.)

**Bounded peers.** Each peer costs an entry in the history, so `settle` gives its document another peer and notes under
the old one how far it went. Whoever is lent a state that holds exactly that much of a noted peer goes on with it, and
takes the note away: one writer at a time, and always from the newest of that peer's changes wherever it went (a state
that was restored, or lost a race, holds less, and gets a new peer). A process that changes a key again and again is one
peer; a lost race costs one more.

**No compaction by itself.** A snapshot holds the whole history beside the state. Loro's shallow snapshots drop the
beginning, and a copy that lives elsewhere with changes from before could then not be merged any more; nobody can
know that there is none. So shallow documents are refused, and `fresh` begins anew where the caller knows it.

Loro's bytes depend on the order in which changes arrived: equal documents may be stored as different bytes.
"""

import os
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self
from weakref import WeakValueDictionary

from cenote import limits
from cenote.errors import CodecError, RejectedError, SetupError
from cenote.model import tags
from cenote.model.merging.base import Merging

if TYPE_CHECKING:
    from loro import LoroDoc

KIND: Final = "loro"
_PEER_END: Final = 2**64 - 1  # Loro keeps this one for itself

_left: dict[int, int] = {}
"""Peers of this process under which nobody writes, and the number of changes that were ever made under each."""


class Document(Merging):
    """A Loro document under a key: change it through `doc`, and everybody's changes are kept.

    Keep it as long as its containers: a forked process knows by it under which peer they write.
    """

    KIND: ClassVar[str] = KIND

    def __init__(self) -> None:
        super().__init__()
        self._held: LoroDoc | None = _new_doc()
        self._form: tuple[Any, bytes] | None = None  # value and snapshot, while nobody can have changed them
        self._peer: int | None = None  # under which its containers write; None: it was never lent
        self._is_open = False  # whether it may go on under it
        self._settled_by: Document | None = None

    # --- what users see

    @property
    def doc(self) -> "LoroDoc":
        """Loro's own document: get_text, get_map, get_list, get_tree, … Its peer is never to be set.

        Raises:
            SetupError: loro is not installed.
        """
        doc = self._loaded()
        self._form = None
        if not self._is_open:
            self._write_as(_peer_for(doc))
        return doc

    @property
    def value(self) -> dict[str, Any]:
        """What is in it, the caller's own; a container that is empty is not."""
        if self._form is not None:
            shown: dict[str, Any] = _ordered(self._form[0])
            return shown
        return _value(self._loaded())

    @property
    def actors(self) -> frozenset[str]:
        """The peers whose changes are in it."""
        return frozenset(str(peer) for peer, _ in _peers(self._loaded()))

    # --- merging

    def settle(self, current: Self | None, actor: str) -> Self:
        settled = self.copy() if current is None else current._joined(self)
        settled._settled_by = self
        if self._is_open:
            assert self._peer is not None
            changes = dict(_peers(self._loaded())).get(self._peer)
            closed = self._peer
            self._write_as(_new_peer())
            self._is_open = False
            if changes is not None:
                _leave(closed, changes)
        return settled

    def adopt(self, settled: Self) -> None:
        if settled._settled_by is not self:
            raise RejectedError("adopt: this is not what `settle` of this instance returned")
        self._take(settled)
        if self._peer is not None and not self._is_open:
            self._write_as(_peer_for(self._loaded()))

    def copy(self) -> Self:
        """The same state; its further changes go under a peer of its own."""
        return self._of(*self._written())

    def merge(self, other: Self) -> Self:
        return self._joined(other)

    def fresh(self) -> Self:
        """The same content without its history. Never to be merged with any state of the old one."""
        from loro import Frontiers

        self._loaded().commit()
        fresh = type(self)()
        start = Frontiers()  # type: ignore[no-untyped-call]  # Loro's stubs leave out what it returns
        fresh.doc.apply_diff(self._loaded().diff(start, self._loaded().oplog_frontiers))
        return fresh

    def _joined(self, other: Self) -> Self:
        if type(self) is not type(other):
            raise RejectedError(f"merge: {type(self).__name__} and {type(other).__name__} are not of one type")
        if _sees(other._loaded(), self._loaded()):
            return other.copy()
        joined = self.copy()
        joined._take(other)
        return joined

    def _take(self, other: "Document") -> None:
        from loro import ExportMode

        mine, theirs = self._loaded(), other._loaded()
        if not _sees(mine, theirs):
            _import(mine, theirs.export(ExportMode.Updates(mine.oplog_vv)))
            self._form = None

    # --- how it is held

    @classmethod
    def _of(cls, value: Any, state: bytes) -> Self:
        document = cls.__new__(cls)
        Merging.__init__(document)
        document._held, document._form = None, (value, state)
        document._peer, document._is_open, document._settled_by = None, False, None
        return document

    def _loaded(self) -> "LoroDoc":
        if self._held is None:
            assert self._form is not None
            doc = _new_doc()
            _import(doc, self._form[1])
            self._held = doc
        return self._held

    def _written(self) -> tuple[Any, bytes]:
        if self._form is not None:
            return self._form
        from loro import ExportMode

        doc = self._loaded()
        if doc.is_detached():
            raise RejectedError(
                "document: it is checked out at an earlier version", hint="doc.checkout_to_latest() brings it back"
            )
        _refuse_shallow(doc)
        written = _value(doc), doc.export(ExportMode.Snapshot())
        if self._peer is None:
            self._form = written
        return written

    def _write_as(self, peer: int) -> None:
        if self._peer is not None:
            _lent.pop(self._peer, None)
        self._loaded().peer_id = peer  # what is not committed yet is, under the peer before
        self._peer, self._is_open = peer, True
        _lent[peer] = self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Document):
            return NotImplemented
        mine, theirs = self._loaded(), other._loaded()
        return _sees(mine, theirs) and _sees(theirs, mine) and self.value == other.value

    __hash__ = None  # it changes

    def _shown(self) -> str:
        return f"{self.value}, state {zlib.crc32(self._written()[1]):08x}"  # two histories are two, for `adopt`


_lent: "WeakValueDictionary[int, Document]" = WeakValueDictionary()


# --- the stored form -------------------------------------------------------------------------------------------


def write(document: Document, plain: Callable[[Any], Any]) -> dict[str, Any]:
    """What stands behind the tag; `plain` tags the value."""
    value, state = document._written()
    return {"value": plain(value), "state": b64encode(state).decode()}


def read(body: Any) -> Document:
    """The document behind its form; ValueError and the like when it is malformed, as far as can be seen from here."""
    state = b64decode(body["state"], validate=True)
    value = tags.untag(body["value"])
    if body.keys() != {"value", "state"} or type(value) is not dict:
        raise ValueError("a document has a `value`, which is a dict, and a `state`")
    try:
        from loro import LoroDoc
    except ImportError:
        return Document._of(value, state)
    with _loros_errors(state):
        LoroDoc.decode_import_blob_meta(state, True)
    return Document._of(value, state)


# --- Loro ------------------------------------------------------------------------------------------------------


def _new_doc() -> "LoroDoc":
    try:
        from loro import ExpandType, LoroDoc
    except ImportError as error:
        raise SetupError("a Document needs loro", hint="pip install 'cenote[documents]'") from error
    doc = LoroDoc()  # type: ignore[no-untyped-call]  # as above
    doc.config_default_text_style(ExpandType.After)  # so that a document that was read can be marked, and begun anew
    return doc


def _import(doc: "LoroDoc", state: bytes) -> None:
    with _loros_errors(state):
        missing = doc.import_(state).pending
    if missing is not None:
        raise CodecError(f"a Loro state without the changes that it builds on: {missing}")
    _refuse_shallow(doc)


def _refuse_shallow(doc: "LoroDoc") -> None:
    if doc.is_shallow():
        raise RejectedError(
            "document: it is shallow, and could not be merged with what was changed before its beginning",
            hint="store a document with its history, or fresh()",
        )


@contextmanager
def _loros_errors(state: bytes) -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # Loro raises BaseException itself, and PyO3 its panics beside Exception
        if type(error) is not BaseException and type(error).__name__ != "PanicException":
            raise
        broken = CodecError(f"a Loro state that cannot be read: {error}")
        broken.raw = state
        raise broken from error


def _value(doc: "LoroDoc") -> dict[str, Any]:
    parts: Any = doc.get_deep_value()
    # get_text("t") shows an empty text, which no change has made and no state holds.
    return {name: _ordered(parts[name]) for name in sorted(parts) if parts[name]}


def _ordered(value: Any) -> Any:
    if type(value) is dict:
        return {name: _ordered(value[name]) for name in sorted(value)}
    return [_ordered(item) for item in value] if type(value) is list else value


def _sees(doc: "LoroDoc", other: "LoroDoc") -> bool:
    doc.commit()
    other.commit()
    return doc.oplog_vv.includes_vv(other.oplog_vv)


def _peers(doc: "LoroDoc") -> list[tuple[int, int]]:
    """Whose changes are in it, and how many of each."""
    from loro import VersionVector

    doc.commit()
    nothing = VersionVector()  # type: ignore[no-untyped-call]  # as above
    return [(span.peer, span.counter.end) for span in doc.oplog_vv.sub_iter(nothing)]


# --- peers -----------------------------------------------------------------------------------------------------


def _new_peer() -> int:
    return int.from_bytes(os.urandom(8)) % _PEER_END


def _peer_for(doc: "LoroDoc") -> int:
    """Under which somebody may go on from this state: one that was left exactly here, else a new one."""
    for peer, changes in _peers(doc) if _left else ():
        if _left.get(peer) == changes == _left.pop(peer, None):  # two threads may look; one takes
            return peer
    return _new_peer()


def _leave(peer: int, changes: int) -> None:
    _left[peer] = changes
    if len(_left) > limits.ACTOR_PLACES_MAX:
        _left.pop(next(iter(_left)), None)


def _forked() -> None:
    _left.clear()
    lent = list(_lent.values())
    _lent.clear()
    for document in lent:
        is_open = document._is_open
        document._write_as(_new_peer())
        document._is_open = is_open


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
