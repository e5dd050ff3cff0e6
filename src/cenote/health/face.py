"""The part of `Store` that looks at the store itself. Looking changes nothing."""

from pathlib import Path
from uuid import UUID

from cenote import health as healths
from cenote.embedded.servers import Servers
from cenote.engine import monitor
from cenote.engine.counted import Counted, counted
from cenote.engine.machines import Machines
from cenote.engine.unflushed import AgentLag, Dirty, Looked, dirty, lagging
from cenote.health import ready as readiness
from cenote.health.verdicts import Health, Readiness
from cenote.model.key import agent_ref


class StoreHealth:
    """How the tiers are doing, and how far they are apart."""

    _machines: Machines
    _servers: Servers | None

    async def stats(self) -> monitor.Stats:
        """Counts, lag and violations; see `Stats`. UnavailableError when KV cannot be reached."""
        return await monitor.stats(self._machines)

    def counted(self) -> Counted:
        """What this process has counted of its own doings; asks nobody."""
        return counted(self._machines)

    async def health(self) -> Health:
        """A verdict with reasons, and what to do: the servers, the consistency window, and what is about to run out."""
        directory = None if self._servers is None else Path(str(self._servers.info()["data_dir"]))
        return await healths.health(self._machines, directory)

    async def ready(self) -> Readiness:
        """Whether this process should be sent work, within a second or so. Without PostgreSQL it is ready and degraded
        until what waits comes near its bound; without NATS it is not."""
        return await readiness.ready(self._machines)

    async def dirty(self, agent: str | UUID | None = None, limit: int = 100) -> Looked[Dirty]:
        """Keys whose newest write SQL does not have yet, of one agent or of all, the oldest first. `.cut` of the list
        says that there may be more, `.compared` is False while PostgreSQL is away and cannot be asked.

        Raises:
            RejectedError: the agent, or the limit, which is 1 to 10,000.
            UnavailableError: KV cannot be reached.
        """
        return await dirty(self._machines.core, None if agent is None else agent_ref(agent), limit)

    async def lagging(self, limit: int = 10) -> Looked[AgentLag]:
        """The agents with the oldest writes that SQL does not have yet, the oldest first. Flags and errors are those of
        `dirty`."""
        return await lagging(self._machines.core, limit)
