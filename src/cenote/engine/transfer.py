"""Export and import: an agent with its checkpoints as a file, and back (docs/restoring.md has the format).

A line is a digest, a blank and a JSON array; the digest is BLAKE2b over the digest of the line before and the array, so
that a line which was changed, lost, added or moved is found by its number. The last line says that it is the last.

What is exported is the chain of checkpoints up to one that is made now. What comes in stays invisible until all of it
was checked: then its checkpoints appear together, and the newest is restored.
"""

import base64
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

import msgspec

from cenote import points
from cenote.engine import entries
from cenote.engine.blobs import reference_id
from cenote.engine.checkpoint import Checkpoint, Checkpoints
from cenote.engine.checkpoint_draft import wish
from cenote.engine.core import Core
from cenote.engine.fold import DIGEST_BYTES, demand_readable, part_digest
from cenote.engine.restore import Restorer
from cenote.errors import CodecError, ConsistencyError, RejectedError, UnavailableError
from cenote.model import key as keys
from cenote.model.entry import UnknownFormat
from cenote.model.kept import FORMAT as KEPT_FORMAT
from cenote.model.kept import unpacked
from cenote.model.uuid7 import uuid7
from cenote.sql.checkpoints import NewCheckpoint
from cenote.sql.transaction import Isolation, Transaction, transact

FORMAT: Final = 1
_NAME: Final = "cenote export"
_ELSEWHERE: Final = "another store"
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(list[Any]).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What came in.

    Attributes:
        agent: whose state it is.
        keys: how many it has now.
        checkpoints: how many came with it.
        checkpoint: the newest of them, what the agent is now.
    """

    agent: str
    keys: int
    checkpoints: int
    checkpoint: Checkpoint


class Transfer:
    """Exports and imports of one process."""

    def __init__(self, core: Core, checkpoints: Checkpoints, restorer: Restorer) -> None:
        self._core = core
        self._db = core.db
        self._checkpoints = checkpoints
        self._restorer = restorer

    # --- out --------------------------------------------------------------------------------------------------

    async def exported(self, agent: keys.AgentRef) -> AsyncIterator[bytes]:
        """The lines of the file; a checkpoint is made first.

        Raises:
            UnavailableError: the servers went away, or its checkpoints changed meanwhile; what was written is no file.
            ConsistencyError: a checkpoint of it is damaged.
        """
        now = await self._checkpoints.create(agent, wish("export", None, keep=False))
        digest, count = b"", 0
        async for words in self._words(agent, now):
            digest, line = _line(digest, words)
            count += 1
            yield line
        yield _line(digest, ["end", count])[1]

    async def _words(self, agent: keys.AgentRef, now: Checkpoint) -> AsyncIterator[list[Any]]:
        yield ["head", _NAME, FORMAT, agent.text]
        seq = 0
        sent: set[UUID] = set()
        query = self._db.queries["export_checkpoints"]
        while (row := await self._db.fetchrow(query, agent.id, seq, now.seq)) is not None:
            new = NewCheckpoint(*row)
            demand_readable(new)
            for number in range(len(new.part_digests) // DIGEST_BYTES):
                found = await self._checkpoints.table.parts([(new.data_id, number)], None)
                part = found.get((new.data_id, number))
                if part is None:
                    raise UnavailableError("the checkpoints changed while they were exported", hint="export again")
                for blob in _blobs(part):
                    if blob not in sent:
                        sent.add(blob)
                        yield ["blob", str(blob), _text(await self._blob(blob))]
                yield ["part", part.decode()]
            yield ["checkpoint", *map(_plain, new)]
            seq = new.seq

    async def _blob(self, blob: UUID) -> bytes:
        body = await self._core.table.read_blob(blob)
        if body is None:
            raise ConsistencyError(f"I1: the blob {blob} of a checkpoint is missing")
        return bytes(body)

    # --- in ---------------------------------------------------------------------------------------------------

    async def imported(self, lines: AsyncIterable[bytes] | Iterable[bytes]) -> Imported:
        """Take a file's lines, for an agent that has neither keys nor checkpoints.

        Raises:
            CodecError: it is no such file, or damaged; the line is named, and nothing of it is to be seen.
            UnknownFormat: a newer cenote wrote it.
            RejectedError: the agent exists.
            UnavailableError: the servers went away; whatever was not finished is not to be seen.
        """
        reading = _Reading(self, lines)
        agent, rows = await reading.all()
        if points.armed:
            await points.hit("import.read")
        await self._demand_new(agent)

        async def all_of_them(tx: Transaction) -> None:
            for row, blobs in rows:
                if await tx.fetchval(self._db.queries["import_checkpoint"], *row, blobs) is None:
                    raise RejectedError(f"checkpoint {row.id} exists already", hint="import into another store")

        await transact(self._db, all_of_them, isolation=Isolation.READ_COMMITTED)
        if points.armed:
            await points.hit("import.added")
        newest = await self._checkpoints.find(agent, rows[-1][0].id)
        done = (await self._restorer.restore([(agent, newest)]))[0]
        return Imported(agent=agent.text, keys=done.written, checkpoints=len(rows), checkpoint=newest)

    async def _demand_new(self, agent: keys.AgentRef) -> None:
        core = self._core
        known = await self._db.fetchval(self._db.queries["has_checkpoints"], agent.id)
        known = known or await core.rows.marks.pending(agent.id)
        known = known or await core.table.page(agent.id, None, "", 1, live_only=True)
        async for message in core.live(core.agent_filter(agent)):
            known = known or not entries.listed(message, core.epochs).deleted
        if known:
            raise RejectedError(f"the agent {agent.text!r} exists here already", hint="import into another store")

    async def keep_part(self, data_id: UUID, number: int, part: bytes) -> None:
        """Bytes of a checkpoint that is not there yet."""
        await self._checkpoints.table.put_parts(data_id, number, [part])

    async def keep_blob(self, blob: UUID, body: bytes, agent: keys.AgentRef, row_key: str) -> None:
        """A large value that nobody refers to yet."""
        await self._db.execute(self._db.queries["import_blob"], blob, body, agent.id, row_key)


class _Reading:
    """One file on its way in."""

    def __init__(self, transfer: Transfer, lines: AsyncIterable[bytes] | Iterable[bytes]) -> None:
        self._transfer = transfer
        self._lines = lines if isinstance(lines, AsyncIterable) else _each(lines)
        self._agent: keys.AgentRef | None = None
        self._rows: list[tuple[NewCheckpoint, list[UUID]]] = []
        self._blobs: dict[UUID, bytes] = {}
        self._data_id = uuid7()
        self._digests: list[bytes] = []
        self._here: list[UUID] = []
        self._known: set[UUID] = set()

    async def all(self) -> tuple[keys.AgentRef, list[tuple[NewCheckpoint, list[UUID]]]]:
        """Read to the end; what it says, checked."""
        digest, number, ended = b"", 0, False
        async for line in self._lines:
            number += 1
            if ended:
                raise _damaged(number, "something follows the end")
            told, _, words = line.rstrip(b"\r\n").partition(b" ")
            if told != _digest(digest, words):
                raise _damaged(number, "its digest does not match")
            digest = told
            try:
                ended = await self._take(number, _decode(words))
            except (msgspec.DecodeError, ValueError, TypeError, IndexError) as error:
                raise _damaged(number, str(error)) from error
        if not ended or self._agent is None or not self._rows:
            raise _damaged(number + 1, "the file ends too early")
        return self._agent, self._rows

    async def _take(self, number: int, words: list[Any]) -> bool:
        kind = words[0]
        if number == 1:
            self._head(words)
        elif kind == "blob":
            self._blobs[UUID(words[1])] = base64.b64decode(words[2], validate=True)
        elif kind == "part":
            await self._part(words[1].encode())
        elif kind == "checkpoint":
            self._checkpoint(number, _typed(words[1:]))
        elif kind == "end" and words[1] == number - 1:
            return True
        else:
            raise ValueError(f"{kind!r} is not expected here")
        return False

    def _head(self, words: list[Any]) -> None:
        if words[:2] != ["head", _NAME]:
            raise CodecError("line 1: this is no export of cenote")
        if words[2] > FORMAT:
            raise UnknownFormat(
                f"line 1: an export of format {words[2]}; this cenote reads formats up to {FORMAT}",
                hint="upgrade this process: pip install --upgrade cenote",
            )
        self._agent = keys.agent_ref(words[3])

    async def _part(self, part: bytes) -> None:
        assert self._agent is not None
        for kept in unpacked(part):
            if kept.codec == entries.BLOB and not kept.deleted:
                blob = reference_id(kept)
                if blob not in self._known:
                    row_key = keys.sql_key(kept.key)
                    await self._transfer.keep_blob(blob, self._blobs.pop(blob), self._agent, row_key)
                    self._known.add(blob)
                self._here.append(blob)
        await self._transfer.keep_part(self._data_id, len(self._digests), part)
        self._digests.append(part_digest(part))

    def _checkpoint(self, number: int, row: NewCheckpoint) -> None:
        assert self._agent is not None
        if row.format > KEPT_FORMAT:
            demand_readable(row)
        if row.agent_id != self._agent.id or row.part_digests != b"".join(self._digests):
            raise _damaged(number, "the checkpoint's parts are not those before it")
        try:
            demand_readable(row)
        except ConsistencyError as error:
            raise _damaged(number, str(error)) from error
        # No delta of this store may stand on it, for its position speaks of another stream.
        here = row._replace(data_id=self._data_id, incarnation=_ELSEWHERE)
        self._rows.append((here, self._here))
        self._data_id, self._digests, self._here = uuid7(), [], []


async def _each(lines: Iterable[bytes]) -> AsyncIterator[bytes]:
    for line in lines:
        yield line


def _blobs(part: bytes) -> Iterable[UUID]:
    return [reference_id(kept) for kept in unpacked(part) if kept.codec == entries.BLOB and not kept.deleted]


def _digest(before: bytes, words: bytes) -> bytes:
    return blake2b(before + words, digest_size=16).hexdigest().encode()


def _line(before: bytes, words: list[Any]) -> tuple[bytes, bytes]:
    text = _encode(words)
    digest = _digest(before, text)
    return digest, digest + b" " + text + b"\n"


def _text(body: bytes) -> str:
    return base64.b64encode(body).decode()


def _plain(one: object) -> object:
    if isinstance(one, UUID):
        return str(one)
    return _text(one) if isinstance(one, bytes) else one


_READ: Final[dict[str, Callable[[Any], object]]] = {
    "id": UUID, "agent_id": UUID, "parent_id": UUID, "group_id": UUID, "data_id": UUID, "raw": base64.b64decode,
    "part_digests": base64.b64decode, "digest": base64.b64decode,
}  # fmt: skip


def _typed(words: list[Any]) -> NewCheckpoint:
    new = NewCheckpoint(*words)
    read: Any = {name: make(found) for name, make in _READ.items() if (found := getattr(new, name)) is not None}
    return new._replace(**read)


def _damaged(number: int, why: str) -> CodecError:
    return CodecError(f"line {number}: {why}", hint="nothing of this file was imported; get it again")
