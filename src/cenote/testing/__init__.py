"""For your tests: real NATS and PostgreSQL, started once a session, a namespace of its own for each test.

Installing cenote brings a pytest plugin with two fixtures:

    async def test_something(cenote_store):
        await cenote_store.agent("scout").put("plan", {"step": 1})

`cenote_servers` gives the addresses, for code that opens stores itself: `cenote.open(**cenote_servers.fresh())`.

Fault tools: `FaultProxy` resets connections, holds bytes and loses answers between a store and its servers (see
`TestServers.by_url`), `frozen(pid)` stops a process and all below it.

`evict_now` and `tier_of` move values between the tiers and tell where they are.

`check_resolver_laws` and `check_merging_laws` look for counterexamples to the laws of merging, with Hypothesis.
"""

from cenote.testing.faults import FaultProxy as FaultProxy
from cenote.testing.faults import frozen as frozen
from cenote.testing.laws import check_merging_laws as check_merging_laws
from cenote.testing.laws import check_resolver_laws as check_resolver_laws
from cenote.testing.servers import TestServers as TestServers
from cenote.testing.tiers import evict_now as evict_now
from cenote.testing.tiers import tier_of as tier_of

__all__ = ["FaultProxy", "TestServers", "check_merging_laws", "check_resolver_laws", "evict_now", "frozen", "tier_of"]
