"""Exact search by cosine, in memory: the numbers of embeddings are kept, which of them count is asked each time.

An embedding never changes under its id, so what is kept is never stale, whatever other processes do. Only the ids of
those that fit come from PostgreSQL, in one array; of a large namespace only candidates (`knowledge_index.py`).
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from cenote import limits
from cenote.errors import SetupError
from cenote.sql.knowledge import FactTable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK: Final = 5_000  # embeddings that one statement fetches
_SPARE: Final = 32  # of so many more than asked for the order is settled in double precision


@dataclass(slots=True)
class _Kept:
    """Embeddings of a namespace, by ascending id."""

    ids: "NDArray[np.int64]"
    facts: list[UUID]
    rows: "NDArray[np.float32]"


class Vectors:
    """What one process knows of the embeddings of a store."""

    def __init__(self, table: FactTable) -> None:
        self._table = table
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    async def nearest(
        self, namespace: str, vector_ids: Sequence[int], asked: bytes, limit: int
    ) -> list[tuple[UUID, float]]:
        """The facts with the highest cosine among these embeddings, and the cosines."""
        np = _numpy()
        wanted = np.sort(np.asarray(vector_ids, dtype=np.int64))
        query = np.frombuffer(asked, dtype="<f4")
        best: list[tuple[float, UUID]] = []
        for start in range(0, max(len(wanted), 1), self._room(query)):
            part = wanted[start : start + self._room(query)]
            kept = await self._known(namespace, part, len(query))
            best = sorted(best + _best(kept, part, query, limit), key=lambda one: (-one[0], one[1]))[:limit]
        return [(fact_id, score) for score, fact_id in best]

    def _room(self, query: Any) -> int:
        return max(_CHUNK, limits.FACTS_VECTORS_BYTES_MAX // (4 * len(query)))

    async def _known(self, namespace: str, wanted: Any, dimensions: int) -> _Kept:
        """The kept embeddings, with all of these that still count."""
        np = _numpy()
        kept = self._kept.get(namespace)
        if kept is None:
            kept = _Kept(np.empty(0, np.int64), [], np.empty((0, dimensions), np.float32))
        missing = np.setdiff1d(wanted, kept.ids, assume_unique=True)
        if len(missing):
            if len(kept.ids) + len(missing) > max(_CHUNK, limits.FACTS_VECTORS_BYTES_MAX // (4 * dimensions)):
                kept, missing = _Kept(np.empty(0, np.int64), [], np.empty((0, dimensions), np.float32)), wanted
            fetched: list[tuple[int, UUID, bytes]] = []
            for start in range(0, len(missing), _CHUNK):
                fetched += await self._table.numbers(namespace, missing[start : start + _CHUNK].tolist())
            kept = _joined(kept, [one for one in fetched if len(one[2]) == 4 * dimensions])
        self._keep(namespace, kept)
        return kept

    def _keep(self, namespace: str, kept: _Kept) -> None:
        self._kept[namespace] = kept
        self._kept.move_to_end(namespace)
        while len(self._kept) > 1 and sum(one.rows.nbytes for one in self._kept.values()) > (
            limits.FACTS_VECTORS_BYTES_MAX
        ):
            self._kept.popitem(last=False)


def ranked(found: Sequence[tuple[int, UUID, bytes]], asked: bytes, limit: int) -> list[tuple[UUID, float]]:
    """The best of these embeddings, by the same exact cosines, and in the same order."""
    np = _numpy()
    query = np.frombuffer(asked, dtype="<f4")
    kept = _joined(_Kept(np.empty(0, np.int64), [], np.empty((0, len(query)), np.float32)), found)
    best = sorted(_best(kept, kept.ids, query, limit), key=lambda one: (-one[0], one[1]))[:limit]
    return [(fact_id, score) for score, fact_id in best]


def _joined(kept: _Kept, fetched: Sequence[tuple[int, UUID, bytes]]) -> _Kept:
    np = _numpy()
    if not fetched:
        return kept
    ids = np.concatenate([kept.ids, np.asarray([one[0] for one in fetched], np.int64)])
    new = np.frombuffer(b"".join(one[2] for one in fetched), dtype="<f4").reshape(len(fetched), -1)
    order = np.argsort(ids)
    facts = kept.facts + [one[1] for one in fetched]
    return _Kept(ids[order], [facts[place] for place in order], np.concatenate([kept.rows, new])[order])


def _best(kept: _Kept, wanted: Any, query: Any, limit: int) -> list[tuple[float, UUID]]:
    """The best of `wanted`. A product of matrices may round the same numbers differently in another place, so the
    order of the best is settled row by row in double precision: equal embeddings have equal scores."""
    np = _numpy()
    places = np.searchsorted(kept.ids, wanted)
    places = places[places < len(kept.ids)] if len(kept.ids) else places[:0]
    places = places[np.isin(kept.ids[places], wanted)]
    places = np.unique(places)
    if not len(places):
        return []
    rows = kept.rows if len(places) == len(kept.rows) else kept.rows[places]
    rough = rows @ query
    count = min(limit + _SPARE, len(rough))
    edge = np.partition(rough, len(rough) - count)[len(rough) - count]
    likely = np.flatnonzero(rough >= edge - 1e-5)
    exact = (rows[likely].astype(np.float64) * query.astype(np.float64)).sum(axis=1)
    return [(float(score), kept.facts[places[at]]) for score, at in zip(exact, likely, strict=True)]


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        raise SetupError("searching by embedding needs numpy", hint="pip install 'cenote[embed]'") from None
    return numpy
