"""One key as each tier holds it at this moment, for those who look: nothing is filled, hydrated or counted."""

from collections.abc import Sequence
from dataclasses import dataclass

from cenote.engine import entries
from cenote.engine.core import Core, reading
from cenote.model import key as keys
from cenote.model.entry import Stored


@dataclass(frozen=True, slots=True)
class Sighting:
    """What memory, KV and SQL hold of a key; None: nothing, or the tier does not answer.

    `differs`: KV and SQL hold different versions, or one of them holds nothing while the other does.
    """

    key: str
    memory: Stored | None
    kv: Stored | None
    sql: Stored | None

    @property
    def differs(self) -> bool:
        """Whether KV is ahead of SQL, or the other way round. What KV does not hold was evicted, which is nothing."""
        return self.kv is not None and (self.sql is None or self.sql.version != self.kv.version)


async def sighted(core: Core, agent: keys.AgentRef, wanted: Sequence[str]) -> list[Sighting]:
    """How these keys of an agent stand. Raises UnavailableError when neither KV nor SQL answers."""
    targets = [core.target(agent, key) for key in wanted]
    with reading():
        messages, _ = await core.messages(targets)
    rows = {row.key: row for row in await core.table.read_many(agent.id, [one.row_key for one in targets])}
    found = []
    for target in targets:
        message, row = messages.get(target.subject), rows.get(target.row_key)
        found.append(
            Sighting(
                target.key, core.cache.peek(target.subject),
                None if message is None else entries.listed(message, core.epochs),
                None if row is None else entries.from_row(row),
            )
        )  # fmt: skip
    return found
