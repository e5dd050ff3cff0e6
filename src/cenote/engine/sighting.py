"""One key as each tier holds it at this moment, for those who look: nothing is filled, hydrated or counted."""

from collections.abc import Sequence
from dataclasses import dataclass

from cenote.engine import entries
from cenote.engine.core import Core, reading
from cenote.model import key as keys
from cenote.model.entry import Stored


@dataclass(frozen=True, slots=True)
class Sighting:
    """What memory, KV and SQL hold of a key; None: nothing, or the tier was not asked.

    `whole`: both KV and SQL have answered, so they can be compared.
    """

    key: str
    memory: Stored | None
    kv: Stored | None
    sql: Stored | None
    whole: bool = True

    @property
    def differs(self) -> bool:
        """Whether KV is ahead of SQL, or the other way round. What KV does not hold was evicted, which is nothing."""
        return self.whole and self.kv is not None and (self.sql is None or self.sql.version != self.kv.version)


def in_memory(core: Core, agent: keys.AgentRef, wanted: Sequence[str]) -> dict[str, Stored]:
    """What this process's L1 holds of these keys. RejectedError when one cannot be a key."""
    found = {key: core.cache.peek(core.target(agent, key).subject) for key in wanted}
    return {key: stored for key, stored in found.items() if stored is not None}


async def in_kv(core: Core, agent: keys.AgentRef, wanted: Sequence[str]) -> dict[str, Stored]:
    """What KV holds of these keys. UnavailableError when it does not answer."""
    targets = [core.target(agent, key) for key in wanted]
    with reading():
        messages, _ = await core.messages(targets)
    return {
        target.key: entries.listed(messages[target.subject], core.epochs)
        for target in targets
        if target.subject in messages
    }


async def in_sql(core: Core, agent: keys.AgentRef, wanted: Sequence[str]) -> dict[str, Stored]:
    """What SQL holds of these keys. UnavailableError when it does not answer."""
    named = {core.target(agent, key).row_key: key for key in wanted}
    rows = await core.table.read_many(agent.id, list(named))
    return {named[row.key]: entries.from_row(row) for row in rows}
