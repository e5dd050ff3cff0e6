"""Move values between the tiers at once, so that a test need not wait for time to pass."""

from cenote.engine import entries
from cenote.errors import ConsistencyError
from cenote.store import Store


async def evict_now(store: Store) -> int:
    """Flush everything, then evict it from KV and from L1, whatever its age; the number of entries evicted.

    For a test that has the store to itself: the minimum eviction age, which this leaves out, protects hydrations
    that other processes have under way (flow rule 7).
    """
    core = store._core
    await store.agent("cenote-testing").put("sentinel", 0)  # the newest entry of a stream is never purged
    info = await core.stream.info()
    await store.flush(30)
    purged = await core.stream.purge_below(info.last_seq, generation=core.link.generation)
    core.cache.clear()
    if not purged:
        raise ConsistencyError("nothing was evicted: there was nothing in KV")
    return purged


async def tier_of(store: Store, agent_id: str, key: str) -> str:
    """Where a key is: "kv", "sql", "both" or "nowhere"; tombstones count as nowhere."""
    core = store._core
    target = core.target(store.agent(agent_id)._agent, key)
    message = await core.leader_message(target)
    row = await core.table.read(target.agent.id, target.row_key)
    in_kv = message is not None and not entries.from_message(message, core.epochs).deleted
    in_sql = row is not None and not row.deleted
    return {(True, True): "both", (True, False): "kv", (False, True): "sql"}.get((in_kv, in_sql), "nowhere")
