"""What stands under one key: a checkpoint with the channel values that are new in it, and the writes that wait for the
next one.

    {"id", "ns", "parent", "metadata", "body", "writes": [[task, path, index, channel, type, bytes], …]}

The body, everything that never changes again, is packed: version maps and channel values have much in common. What SQL
may be asked for stays JSON. A value that an ancestor holds already is not written again: `held` names the checkpoint in
whose record it stands. A record with nothing but writes waits for its checkpoint.
"""

import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from typing import Any, Final

import msgspec
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from cenote.errors import CodecError, RejectedError

Record = dict[str, Any]
Typed = tuple[str, bytes]
"""What LangGraph's serializer makes of a value."""
Kept = tuple[str, bytes | str]
"""The same, or its type and the key where its bytes are."""
Write = list[Any]
"""Task, its path, index, channel, type, base64 of the bytes; if these have a key of their own: "", and the key."""

TINY_BYTES_MAX: Final = 64
"""Values up to here are repeated in each record: a reference is hardly shorter, and has to be followed."""
INLINE_BYTES_MAX: Final = 8_192
"""Larger ones have a key of their own: a record is written anew with each write that waits."""
TOKEN_CHARS_MAX: Final = 160
DELTA_COUNTERS: Final = "counters_since_delta_snapshot"
"""Metadata of a checkpoint with channels of which only differences are stored, by channel."""
_PLAIN_CHARS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_:|")
_FAR: Final = 7  # length of a write whose bytes have a key of their own


class Body(msgspec.Struct, array_like=True):
    """What of a record never changes, but for a prune that fills in what an ancestor held.

    Attributes:
        checkpoint: its fields but for id and values, as far as they are plain; packed, for LangGraph changes what it is
            given, and bodies are kept.
        values: of the channels that are new in it, `Kept` each.
        held: by checkpoint, the channels whose values stand there.
        rest: further fields of the checkpoint.
        metadata: where JSON cannot carry it.
    """

    checkpoint: msgspec.Raw
    values: dict[str, tuple[str, Any]]
    held: dict[str, list[str]]
    rest: Typed | None = None
    metadata: Typed | None = None

    def plain(self) -> dict[str, Any]:
        """The fields, the caller's own."""
        fields: dict[str, Any] = msgspec.msgpack.decode(self.checkpoint)
        return fields

    def names(self) -> set[str]:
        """Channels that have a value here."""
        return {*self.values, *(name for names in self.held.values() for name in names)}


@dataclass
class Draft:
    """A checkpoint on its way into the store: its record without a body, the body without values and `held`, the values
    that are new, the channels that are not, and all values that came along."""

    record: Record
    body: Body
    fresh: dict[str, Typed]
    others: list[str]
    values: Mapping[str, Any]


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Body)


def sealed(body: Body) -> str:
    """A body as text. RejectedError when something in it cannot be packed."""
    return b64encode(zlib.compress(_packed(body), 1)).decode("ascii")


def _packed(what: object) -> bytes:
    try:
        return _encoder.encode(what)
    except (OverflowError, UnicodeEncodeError) as error:
        words = f"a name or a version of a channel cannot be kept: {error}"
        raise RejectedError(words, hint="names without lone surrogates, versions of at most 64 bits") from error


def opened(text: str) -> Body:
    """The body again; CodecError when these are not its bytes."""
    try:
        return _decoder.decode(zlib.decompress(b64decode(text)))
    except (ValueError, zlib.error, msgspec.DecodeError) as error:
        raise CodecError(f"the body of a checkpoint cannot be read: {error}") from error


def draft(
    serde: SerializerProtocol,
    place: tuple[str, str | None],
    checkpoint: Checkpoint,
    metadata: CheckpointMetadata,
    new_versions: ChannelVersions,
) -> Draft:
    """Serialize what is new in a checkpoint. `place`: its namespace, and its parent's id."""
    given: Mapping[str, Any] = checkpoint
    values = checkpoint["channel_values"]
    fields = {name: one for name, one in given.items() if name not in ("id", "channel_values")}
    plain = {name: one for name, one in fields.items() if _is_json(one)}
    rest = {name: one for name, one in fields.items() if name not in plain}
    exact = None if _is_json(metadata) else serde.dumps_typed(dict(metadata))
    told = {name: one for name, one in metadata.items() if _is_json(one)}
    if counters := metadata.get(DELTA_COUNTERS):
        told[DELTA_COUNTERS] = {name: list(pair) for name, pair in counters.items()}
    return Draft(
        {"id": checkpoint["id"], "ns": place[0], "parent": place[1], "metadata": told},
        Body(
            msgspec.Raw(_packed(plain)),
            values={},
            held={},
            rest=serde.dumps_typed(rest) if rest else None,
            metadata=exact,
        ),
        fresh={name: serde.dumps_typed(values[name]) for name in new_versions if name in values},
        others=[name for name in checkpoint["channel_versions"] if name not in new_versions],
        values=values,
    )


def settle(given: Draft, parent: tuple[str, Body] | None, serde: SerializerProtocol) -> dict[str, Typed]:
    """Say in the body what ancestors hold, the parent (id and body) knows which; what is left has to be written: the
    new values, and those that nobody holds."""
    written, body = dict(given.fresh), given.body
    own = body.plain()["channel_versions"]
    versions = parent[1].plain()["channel_versions"] if parent else {}
    home = {name: holder for holder, names in parent[1].held.items() for name in names} if parent else {}
    for name in given.others:  # a new version without a value: the channel is empty
        same = parent is not None and versions.get(name) == own[name]
        value = parent[1].values.get(name) if same and parent else None
        if value is not None and isinstance(value[1], bytes) and len(value[1]) <= TINY_BYTES_MAX:
            body.values[name] = value
        elif value is not None and parent:
            body.held.setdefault(parent[0], []).append(name)
        elif same and name in home:
            body.held.setdefault(home[name], []).append(name)
        elif name in given.values:
            written[name] = serde.dumps_typed(given.values[name])
    return written


def complete(record: Any) -> bool:
    """Whether a checkpoint stands there, and not only writes that wait for it."""
    return isinstance(record, dict) and "body" in record


# --- writes ---------------------------------------------------------------------------------------------------------


def numbered(writes: Sequence[tuple[str, Any]], serde: SerializerProtocol) -> list[tuple[int, str, Typed]]:
    """Each write with its index: the place in the list, or that of its special channel."""
    return [
        (WRITES_IDX_MAP.get(channel, index), channel, serde.dumps_typed(value))
        for index, (channel, value) in enumerate(writes)
    ]


def write(task: tuple[str, str], index: int, channel: str, value: Kept) -> Write:
    """How a record keeps it; `task`: id and path."""
    kind, data = value
    far = [data] if isinstance(data, str) else []
    return [*task, index, channel, kind, "" if isinstance(data, str) else b64encode(data).decode("ascii"), *far]


def joined(old: Sequence[Write], new: Sequence[Write]) -> list[Write]:
    """Writes of a record: the first of a task and index stays, but for the special channels, whose last one does."""
    found = {(one[0], one[2]): one for one in old}
    for one in new:
        place = (one[0], one[2])
        if one[2] < 0 or place not in found:
            found[place] = one
    return sorted(found.values(), key=lambda one: writes_sort_key(one[1], one[0], one[2]))


def value_of(one: Write) -> Kept:
    """What a write holds."""
    return (one[4], one[6]) if len(one) == _FAR else (one[4], b64decode(one[5]))


def far_keys(record: Record, body: Body) -> set[str]:
    """Keys that hold bytes of this record."""
    values = [*body.values.values(), *map(value_of, record["writes"])]
    return {data for _, data in values if isinstance(data, str)}


# --- what LangGraph is given ------------------------------------------------------------------------------------------


def checkpoint_of(record: Record, body: Body, values: Mapping[str, Typed], serde: SerializerProtocol) -> Checkpoint:
    """The checkpoint with its channel values."""
    rest: dict[str, Any] = serde.loads_typed(body.rest) if body.rest else {}
    loaded = {name: serde.loads_typed(value) for name, value in values.items()}
    made: Any = {**body.plain(), **rest, "id": record["id"], "channel_values": loaded}
    checkpoint: Checkpoint = made
    return checkpoint


def metadata_of(record: Record, body: Body, serde: SerializerProtocol) -> CheckpointMetadata:
    """What was said of the checkpoint."""
    told: CheckpointMetadata = serde.loads_typed(body.metadata) if body.metadata else record["metadata"]
    return told


# --- keys -----------------------------------------------------------------------------------------------------------


def token(text: str) -> str:
    """A part of a key: as it is, or hashed when it is long or has something special in it. Injective."""
    if len(text) <= TOKEN_CHARS_MAX and _PLAIN_CHARS.issuperset(text):
        return text
    return "!" + sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def namespace_prefix(ns: str) -> str:
    """With which the keys of a namespace's records begin."""
    return f"c.n{token(ns)}."


def record_key(ns: str, checkpoint_id: str) -> str:
    """Where a checkpoint stands."""
    return f"{namespace_prefix(ns)}i{token(checkpoint_id)}"


def head_key(ns: str) -> str:
    """Where the greatest id of a namespace stands."""
    return f"h.n{token(ns)}"


def run_ids(records: Iterable[Record]) -> set[str]:
    """The runs that made these."""
    return {run for record in records if isinstance(run := record["metadata"].get("run_id"), str)}


def _is_json(value: object) -> bool:
    if type(value) is dict:
        return all(type(name) is str and _is_json(one) for name, one in value.items())
    if type(value) is list:
        return all(map(_is_json, value))
    return isfinite(value) if type(value) is float else value is None or type(value) in (str, int, bool)
