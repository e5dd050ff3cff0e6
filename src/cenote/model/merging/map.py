"""A map whose fields merge: each is one of the merging values, maps included.

The children share the map's context (DotMap of Almeida, Shoker, Baquero 2018, 7.3). A removal takes away what was
seen of a field; a change that the remover had not seen survives, and with it the field. Beside the child's own dots a
field has one of presence, renewed by each change, so that an empty field is one, too. It bears the field's limit, which
goes with it: a limit of a removed field binds nobody.

Two who create one field with different types concurrently keep both: `board[name]` is the first by type name, and the
next assignment or removal replaces both.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from cenote.errors import RejectedError
from cenote.model.merging.base import Causes, Merging, tightest
from cenote.model.merging.context import Context, Dot
from cenote.model.merging.registers import LWWRegister

Field = tuple[str, str]  # its name, and the kind of value


class ORMap(Merging):
    """Fields by name; a value that is no merging one is put into an LWWRegister."""

    KIND: ClassVar[str] = "ormap"
    CHILDREN: ClassVar[dict[str, type[Merging]]] = {}

    def __init__(self, fields: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._children: dict[Field, Merging] = {}
        self._index: dict[Field, list[Dot]] | None = {}  # the dots of presence
        for name, value in (fields or {}).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if type(name) is not str or _has_surrogates(name):
            raise RejectedError(f"field: a str without lone surrogates is needed, not {ascii(name)[:80]}")
        source = value if isinstance(value, Merging) else LWWRegister(value)
        if source.KIND not in self.CHILDREN:
            raise RejectedError(f"field: a {type(value).__name__} has a history of its own; store it under a key")
        if self._children.get((name, source.KIND)) is value:
            return  # board["votes"] = board["votes"]
        if isinstance(source, ORMap) and source._causes is self._causes:
            source = source.copy()
        self._drop(self._named(name))
        self._plant((name, source.KIND), source)

    def __getitem__(self, name: str) -> Any:
        found = self._named(name)
        if not found:
            raise KeyError(name)
        return self._children[min(found)]

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self.discard(name)

    def discard(self, name: str) -> None:
        """Remove the field if it is there; changes of it that are not seen here survive."""
        gone = self._named(name)
        if gone:
            self._drop(gone)
            self._changed()

    def get(self, name: str, default: Any = None) -> Any:
        """The field, or the default."""
        return self._children[min(found)] if (found := self._named(name)) else default

    def keys(self) -> list[str]:
        """The names of the fields, sorted."""
        return sorted({name for name, _ in self._children})

    def __contains__(self, name: object) -> bool:
        return type(name) is str and bool(self._named(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    # --- fields

    def _named(self, name: str) -> list[Field]:
        return [field for kind in self.CHILDREN if (field := (name, kind)) in self._children]

    def _made(self, kind: str) -> Merging:
        return self.CHILDREN[kind]()

    def _adopted(self, field: Field, child: Merging) -> Merging:
        """The child, sharing this map's context and telling it of changes."""
        child._share(self._causes)
        child._touch = lambda: self._renew(field)
        self._children[field] = child
        return child

    def _share(self, causes: Causes) -> None:
        super()._share(causes)
        for field, child in list(self._children.items()):
            self._adopted(field, child)

    def _plant(self, field: Field, source: Merging) -> None:
        child = self._made(field[1])
        child.limit = source.limit
        child._share(self._causes)
        child._graft(source)
        self._adopted(field, child)
        self._renew(field)

    def _renew(self, field: Field) -> None:
        if field in self._children:
            index = self._indexed()
            present = field, self._children[field].limit
            index[field] = [self._record(present, index.get(field, []))]

    def _drop(self, fields: list[Field]) -> None:
        for field in fields:
            _release(self._children.pop(field))
            self._forget(self._indexed().pop(field, []))

    def _indexed(self) -> dict[Field, list[Dot]]:
        if self._index is None:
            self._index = {}
            for dot, (field, _) in self._dots.items():
                self._index.setdefault(field, []).append(dot)
        return self._index

    # --- merging

    def _absorb(self, left: Any, left_seen: Context, right: Any, right_seen: Context) -> None:
        super()._absorb(left, left_seen, right, right_seen)
        self._index = None
        mine, other = (side._children if side is not None else {} for side in (left, right))
        for field, dots in self._indexed().items():
            child = self._adopted(field, self._made(field[1]))
            child._absorb(mine.get(field), left_seen, other.get(field), right_seen)
            child.limit = tightest(self._dots[dot][1] for dot in dots)

    def _become(self, other: Any) -> None:
        super()._become(other)
        self._index = None
        before, self._children = self._children, {}
        for field in before.keys() - other._children.keys():
            _release(before[field])
        for field, child in other._children.items():
            kept = before.get(field)
            if kept is None:
                self._adopted(field, child)
            else:
                kept._become(child)
                self._adopted(field, kept)

    def _live(self) -> Iterator[Dot]:
        yield from self._dots
        for _, child in sorted(self._children.items()):
            yield from child._live()

    def _rename(self, renames: dict[Dot, Dot]) -> None:
        super()._rename(renames)
        self._index = None
        for child in self._children.values():
            child._rename(renames)

    def _fold(self, actor: str) -> None:
        for child in self._children.values():
            child._fold(actor)

    def _graft(self, source: Any) -> None:
        for field, child in source._children.items():
            self._plant(field, child)

    def _state(self) -> Any:
        return self._dots, {field: (child.limit, child._state()) for field, child in self._children.items()}

    def _shown(self) -> str:
        return repr({name: self[name] for name in self}) if self._children else ""


def _release(child: Merging) -> None:
    """Who still holds what was a field holds a value of its own."""
    child._touch = None
    child._share(Causes(child._causes.context.copy()))


def _has_surrogates(name: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in name)
