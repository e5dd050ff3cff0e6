"""Merging values as JSON, so that SQL can query them:

    {"$orset": {"items": ["a", "b"], "dots": [[0, 1], [1, 4]], "actors": [["p1", 7], ["p2", 4]]}}

Columns run in parallel: each item's dots are pairs of an actor's place and a number, one behind the other. `actors`
is the context's vector; `cloud`, dots beyond it, and `limit` stand there only when there are some. Counters begin
with `value`, and their `parts` are [added, taken away]; registers and logs have `stamps`; a register's winner stands
first. A map has `fields`: name, kind, body; the fields' dots are of the map's actors, and `present` are a field's own,
with their `limits` where they have different ones.
"""

from collections.abc import Callable
from typing import Any, Final

from cenote import limits
from cenote.errors import RejectedError
from cenote.model import tags
from cenote.model.clock import check_actor, check_number
from cenote.model.merging.base import Merging, tightest
from cenote.model.merging.context import Context, Dot
from cenote.model.merging.counters import GCounter, PNCounter
from cenote.model.merging.log import AppendLog
from cenote.model.merging.map import ORMap
from cenote.model.merging.registers import LWWRegister, MVRegister
from cenote.model.merging.sets import GSet, ORSet

KINDS: Final[dict[str, type[Merging]]] = {
    one.KIND: one for one in (AppendLog, GCounter, GSet, LWWRegister, MVRegister, ORMap, ORSet, PNCounter)
}
ORMap.CHILDREN.update(KINDS)

Plain = Callable[[Any], Any]
_Places = dict[str, int]


def write(value: Merging, plain: Plain) -> dict[str, Any]:
    """The tagged form; `plain` tags an element. RejectedError when more have changed it than can be told apart."""
    value._causes.share()
    context = value._causes.context
    if len(context.vector) + len(context.cloud) > limits.MERGING_ACTORS_MAX < len(value.actors):
        raise RejectedError(
            f"{type(value).__name__}: {len(value.actors)} actors have changed it; the limit is "
            f"{limits.MERGING_ACTORS_MAX}",
            hint="when no other copy of it is in use, store value.fresh() in its place",
        )
    places = {actor: place for place, actor in enumerate(sorted(context.actors()))}
    body = _body(value, plain, places)
    body["actors"] = [[actor, context.vector.get(actor, 0)] for actor in places]
    if context.cloud:
        body["cloud"] = _flat(sorted(context.cloud), places)
    return {f"${value.KIND}": body}


def read(kind: str, body: Any) -> Merging:
    """The value behind its form, `kind` without `$`; ValueError and the like when it is malformed."""
    try:
        actors = [check_actor(actor) for actor, _ in body["actors"]]
        _demand(len(set(actors)) == len(actors), "an actor stands twice")
        vector = {actor: check_number(actor, number) for actor, number in body["actors"] if number}
        context = Context(vector, _dots(body.get("cloud", []), actors))
        value = KINDS[kind]()
        value._causes.context = context
        _fill(value, body, actors, set())
    except RejectedError as error:
        raise ValueError(str(error)) from error
    return value


def _body(value: Merging, plain: Plain, places: _Places) -> dict[str, Any]:
    body = value._headline()
    if isinstance(value, ORMap):
        fields: dict[str, Any] = {}
        for (name, kind), child in sorted(value._children.items(), key=lambda row: row[0]):
            fields.setdefault(name, {})[kind] = written = _body(child, plain, places)
            present = sorted(value._indexed()[name, kind])
            written["present"] = _flat(present, places)
            bounds = [value._dots[dot][1] for dot in present]
            if set(bounds) != {child.limit}:
                written["limits"] = bounds
        # A single name with `$` would read as a tag; SQL's projection knows `$dict`.
        body["fields"] = {"$dict": fields} if len(fields) == 1 and next(iter(fields)).startswith("$") else fields
        return body
    rows = value._rows()
    cells = [value._pack(payload, plain) for payload, _ in rows]
    for i, column in enumerate(value.COLUMNS):
        body[column] = [row[i] for row in cells]
    body["dots"] = [_flat(dots, places) for _, dots in rows]
    if value.limit is not None:
        body["limit"] = value.limit
    return body


def _fill(value: Merging, body: Any, actors: list[str], used: set[Dot]) -> None:
    if isinstance(value, ORMap):
        _fill_map(value, body["fields"], actors, used)
        return
    value.limit = _limit(body.get("limit"))
    columns = [body[column] for column in value.COLUMNS]
    for cells, flat in zip(zip(*columns, strict=True), body["dots"], strict=True):
        payload = value._unpack(cells, tags.untag)
        dots = _dots(flat, actors)
        if not dots:
            raise ValueError("an item without a dot")
        for dot in dots:
            _use(dot, value._causes.context, used)
            value._dots[dot] = payload
    if isinstance(value, GSet):
        value._index = None
        value._indexed()  # refuses what is no element


def _fill_map(board: ORMap, fields: Any, actors: list[str], used: set[Dot]) -> None:
    if len(fields) == 1 and "$dict" in fields:
        fields = fields["$dict"]
    board._index = None
    for name, kinds in fields.items():
        for kind, body in kinds.items():
            present = _dots(body["present"], actors)
            _demand(bool(present), "a field without a dot")
            child = board._adopted((name, kind), KINDS[kind]())
            _fill(child, body, actors, used)
            bounds = body.get("limits", [child.limit] * len(present))
            for dot, limit in zip(present, map(_limit, bounds), strict=True):
                _use(dot, board._causes.context, used)
                board._dots[dot] = (name, kind), limit
            _demand(tightest(bounds) == child.limit, "a field's limit is the least of its presences'")


def _limit(limit: Any) -> int | None:
    _demand(limit is None or (type(limit) is int and limit > 0), "a limit is a positive int")
    return limit  # type: ignore[no-any-return]  # looked at in the line above


def _flat(dots: list[Dot], places: _Places) -> list[int]:
    return [part for actor, number in dots for part in (places[actor], number)]


def _dots(flat: Any, actors: list[str]) -> list[Dot]:
    _demand(type(flat) is list and len(flat) % 2 == 0, "dots are pairs")
    dots = []
    for place, number in zip(flat[::2], flat[1::2], strict=True):  # no calls in here: it runs for every element
        if type(place) is not int or not 0 <= place < len(actors):
            raise ValueError("a dot of no actor")
        if type(number) is not int or not 0 < number <= limits.CLOCK_NUMBER_MAX:
            raise ValueError("a dot's number is an int from 1 on")
        dots.append((actors[place], number))
    return dots


def _use(dot: Dot, seen: Context, used: set[Dot]) -> None:
    if dot not in seen or dot in used:
        raise ValueError("a dot that was never seen, or stands twice")
    used.add(dot)


def _demand(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)
