"""What all merging values are: dots with payloads, the context of what was seen, and whose changes are not yet settled.

**Join.** A state is a map from dots to payloads and a context. `merge` keeps a dot that both states hold, and one
that a single state holds when the other has not seen it: the optimised OR-set of Bieniusa, Zawirski, Preguiça,
Shapiro, Baquero, Balegas, Duarte ("An optimized conflict-free replicated set", 2012), used for every type as in
Almeida, Shoker, Baquero ("Delta state replicated data types", 2018, section 7). A dot's payload never changes, so this
is commutative, associative and idempotent if only no dot ever names two changes.

**Unique dots.** One process holds many copies of one value: two reads, a change function that is run again. So an
instance records its changes under a *provisional actor*: 8 random bytes, made at its first change, and anew in a
copy, in an unpickled one, in a forked process, and after each `settle`. Provisional dots are unique whatever happens.

**Bounded actors.** `settle(current, actor)` is the join of `current` with this instance, its own provisional dots that
`current` has not seen renamed to the next ones of `actor`. Safe, because (1) nobody else has ever seen a renamed
provisional dot: what is copied, merged, pickled or encoded before it was settled is shared from then on and keeps its
provisional name, at one entry of the context; (2) the new dots are `actor`'s next ones in
`current`, and of all that settle on the same `current` the compare-and-set lets one win, so they are unique along one
line of writes; the losers' renamings were never seen and are done again; (3) renaming is one-to-one, and a removal
needs no dot. So a line holds one entry for each process, not for each copy.

**Entries of the dead stay.** An entry says "what is missing here of this actor's dots was removed". While any other
copy may hold one of these dots (in a process's memory, in a backup, under another key), a state without the entry would
take it for new: what was removed comes back, and what was counted is counted again. Moving the dots to a living actor
does not help: the copy still holds the old ones. Nobody can know that there is no such copy, so no state drops an entry
by itself, `limits.MERGING_ACTORS_MAX` bounds them, and `fresh` begins anew where the caller knows it.

**Where lines part.** (2) fails when `actor` goes on from a state that is not its newest: the key was deleted and
created again, restored, rewound, or copied to another key, and elsewhere lives a state that has seen the same numbers
for other changes. `actors.Actors` therefore gives a process a new name where its entry in `current` is not the newest
that it wrote to that key; a name costs one entry in the context, and nothing in the usual course.

**Unknown outcomes.** When the answer of a settled write is lost, it may be stored, with the provisional dots under
names that the instance does not know. To settle again would then count twice. So the writer must raise
OutcomeUnknownError unless it can tell (by the operation id), and the caller reads before he changes anything again.

**After the ack** `adopt(settled)` puts the settled names in place of the provisional ones, keeps what was changed
meanwhile, and takes over what others had written. Between `settle` and `adopt`, while the write is under way, an
instance may be changed but must not be shared: the other one would hold the settled changes under their old names.

Not safe for several threads at once. A child of a map shares the map's context, and is settled with it.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Self

from cenote.errors import RejectedError
from cenote.model import value as values
from cenote.model.merging.context import Context, Dot

_PLAIN = (type(None), bool, int, float, str, bytes)


class Causes:
    """What a value and its children share: the context, and the provisional actors of its changes."""

    __slots__ = ("context", "is_open", "own", "pid")

    def __init__(self, context: Context) -> None:
        self.context = context
        self.own: list[str] = []
        self.is_open = False
        self.pid = 0

    def dot(self) -> Dot:
        """A new dot for a change made here."""
        if not self.is_open or self.pid != os.getpid():
            self.own.append(os.urandom(8).hex())
            self.is_open, self.pid = True, os.getpid()
        return self.context.next(self.own[-1])

    def share(self) -> None:
        """Somebody else is about to see the changes made here: they keep their provisional names."""
        self.own.clear()
        self.is_open = False

    def writes_as(self, actor: str) -> bool:
        """Whether the next change goes under this name."""
        return self.is_open and self.own[-1] == actor and self.pid == os.getpid()


class Merging:
    """Base of the values that merge. Equality is by state: the same changes seen, the same ones left."""

    KIND: ClassVar[str]
    COLUMNS: ClassVar[tuple[str, ...]] = ("items",)

    def __init__(self, *, limit: int | None = None) -> None:
        if limit is not None and (type(limit) is not int or limit < 1):
            raise RejectedError(f"limit: a positive int is needed, not {limit!r}")
        self.limit = limit
        self._causes = Causes(Context())
        self._dots: dict[Dot, Any] = {}
        self._touch: Callable[[], None] | None = None  # a child tells its map
        self._settled_from: tuple[Merging, set[str], dict[Dot, Dot], Context] | None = None  # for `adopt`

    # --- changing

    def _record(self, payload: Any, replacing: list[Dot]) -> Dot:
        dot = self._causes.dot()
        self._forget(replacing)
        self._dots[dot] = payload
        self._changed()
        return dot

    def _forget(self, dots: list[Dot]) -> None:
        for dot in dots:
            del self._dots[dot]

    def _changed(self) -> None:
        if self._touch is not None:
            self._touch()

    # --- merging

    def merge(self, other: Self) -> Self:
        """The join of both, a new instance: all changes that either has seen. RejectedError for another type."""
        for side in (self, other):
            if isinstance(side, Merging):
                side._causes.share()
        return self._joined(other)

    def _joined(self, other: Self) -> Self:
        if type(self) is not type(other):
            raise RejectedError(f"merge: {_name(self)} and {_name(other)} are not of one type")
        joined = self._blank()
        joined._causes.context = self._causes.context.join(other._causes.context)
        joined._absorb(self, self._causes.context, other, other._causes.context)
        return joined

    def settle(self, current: Self | None, actor: str) -> Self:
        """What to write in place of `current` (None: the key is absent), by compare-and-set, as `actor`.

        Later changes of this instance are not in it, and wait for the next `settle`.
        """
        if self._touch is not None:
            raise RejectedError("settle: this is a field; settle the map that it is in")
        self._causes.is_open = False
        base = self._blank() if current is None else current
        seen = base._causes.context
        settled = base._joined(self)
        own = set(self._causes.own)
        renames: dict[Dot, Dot] = {}
        fresh = sorted((dot for dot in settled._live() if dot[0] in own and dot not in seen), key=self._own_order)
        context = seen.join(self._causes.context.without(own, seen))
        for dot in fresh:
            renames[dot] = context.next(actor)
        settled._causes.context = context
        settled._rename(renames)
        settled._fold(actor)
        settled._settled_from = (self, own, renames, seen)
        return settled

    def adopt(self, settled: Self) -> None:
        """`settled`, made by this instance, was acknowledged: what it holds is no longer provisional here."""
        made = settled._settled_from
        if made is None or made[0] is not self:
            raise RejectedError("adopt: this is not what `settle` of this instance returned")
        _, own, renames, seen = made
        mine = self._twin()
        mine._rename(renames)
        mine._causes.context = mine._causes.context.without(own, seen)
        for dot in renames.values():
            mine._causes.context.add(dot)
        self._become(settled._joined(mine))
        self._causes.own = [actor for actor in self._causes.own if actor not in own]

    def copy(self) -> Self:
        """The same state; its further changes go under a provisional actor of its own."""
        self._causes.share()
        return self._twin()

    def fresh(self) -> Self:
        """The same content without its history: the first state of a new value.

        Never to be merged with any state of the old one, which would count a second time.
        """
        fresh = self._blank()
        fresh._graft(self)
        return fresh

    def _twin(self) -> Self:
        twin = self._blank()
        twin._causes.context = self._causes.context.copy()
        twin._absorb(self, self._causes.context, None, Context())
        return twin

    @property
    def actors(self) -> frozenset[str]:
        """Whose changes this state has seen: one entry each."""
        return frozenset(self._causes.context.actors())

    def _own_order(self, dot: Dot) -> tuple[int, int]:
        return self._causes.own.index(dot[0]), dot[1]

    # --- what a map does otherwise

    def _blank(self) -> Self:
        blank = type(self)()
        blank.limit = self.limit
        return blank

    def _absorb(self, left: Self | None, left_seen: Context, right: Self | None, right_seen: Context) -> None:
        mine = {} if left is None else left._dots
        other = {} if right is None else right._dots
        if other:
            kept = {dot: payload for dot, payload in mine.items() if dot in other or dot not in right_seen}
            kept.update((dot, payload) for dot, payload in other.items() if dot not in mine and dot not in left_seen)
        else:
            kept = {dot: payload for dot, payload in mine.items() if dot not in right_seen}
        self._dots = kept
        self.limit = tightest(side.limit for side in (left, right) if side is not None)

    def _become(self, other: Self) -> None:
        """Take over the other's state, in place, so that who holds a field of a map still holds it."""
        self._causes.context = other._causes.context
        self._dots = other._dots
        self.limit = other.limit

    def _share(self, causes: Causes) -> None:
        """From now on a field of the map with these causes; or, with new ones, of none."""
        self._causes = causes

    def _live(self) -> Iterator[Dot]:
        yield from self._dots

    def _rename(self, renames: dict[Dot, Dot]) -> None:
        self._dots = {renames.get(dot, dot): payload for dot, payload in self._dots.items()}

    def _fold(self, actor: str) -> None:
        """Where a dot of `actor` can say as much as several, keep that one."""

    def _graft(self, source: "Merging") -> None:
        """The other's content as changes made here."""
        for payload in source._dots.values():
            self._record(payload, [])

    def _state(self) -> Any:
        return self._dots

    # --- storing: the wire form is `wire.py`'s

    def _headline(self) -> dict[str, Any]:
        return {}

    def _rows(self) -> list[tuple[Any, list[Dot]]]:
        return [(payload, [dot]) for dot, payload in sorted(self._dots.items())]

    def _pack(self, payload: Any, plain: Callable[[Any], Any]) -> tuple[Any, ...]:
        return (plain(payload),)

    def _unpack(self, cells: tuple[Any, ...], untag: Callable[[Any], Any]) -> Any:
        return untag(cells[0])

    # --- Python's own verbs

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        assert isinstance(other, Merging)
        same_seen = self._causes.context == other._causes.context
        return same_seen and self.limit == other.limit and bool(self._state() == other._state())

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __copy__(self) -> Self:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, values.encode(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shown()})"

    def _shown(self) -> str:
        """What stands between the brackets of its repr: each type's own."""
        raise NotImplementedError


def merge(left: Merging, right: Merging) -> Merging:
    """The join of two values of one type; RejectedError names both types otherwise."""
    for side in (left, right):
        if not isinstance(side, Merging):
            raise RejectedError(f"merge: {_name(left)} and {_name(right)}: {_name(side)} is no merging value")
    return left.merge(right)


def tightest(limits: Iterable[int | None]) -> int | None:
    """The limit that holds where all these meet."""
    return min((limit for limit in limits if limit is not None), default=None)


def own_copy(value: Any) -> Any:
    """The value as the store would give it back, so that nobody else can change it; RejectedError if it cannot."""
    codec, body = values.encode(value)
    return value if type(value) in _PLAIN else values.decode(codec, body)


def _restore(codec: str, body: bytes) -> Any:
    return values.decode(codec, body)


def _name(value: object) -> str:
    return type(value).__name__
