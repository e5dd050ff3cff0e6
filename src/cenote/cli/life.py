"""`hydrate`, `sleep`, `phase`: an agent's life."""

from typing import TYPE_CHECKING, Annotated

import typer

from cenote.cli.entries import Agent
from cenote.cli.options import OPERATION, STATE, Common, command
from cenote.cli.output import print_json, print_table, printable

if TYPE_CHECKING:
    from cenote.config import Config
    from cenote.engine.bed import Slept
    from cenote.engine.hydrator import Hydrated
    from cenote.engine.lifecycle import LifecycleEvent
    from cenote.lifecycle import Phase

app = typer.Typer()


@command(app, "hydrate", panel=OPERATION)
def hydrate(
    common: Common,
    agent: Agent,
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="Only keys that begin with it.")] = "",
) -> int:
    """Bring all keys of an agent that only PostgreSQL holds back into KV."""
    from cenote.cli.reach import wait

    hydrated = wait(_hydrate(common.load(flush__enabled=False), agent, prefix))
    if common.json:
        print_json({"agent": agent, "keys": hydrated.keys, "bytes": hydrated.bytes})
    else:
        print(f"{printable(agent)}: {hydrated.keys} keys, {hydrated.bytes} bytes brought into KV")
    return 0


@command(app, "sleep", panel=OPERATION)
def sleep(
    common: Common,
    agent: Agent,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0, help="Give up after this.")] = 60,
) -> int:
    """Put an agent aside: once PostgreSQL has all of it, it leaves KV. Takes two seconds or more."""
    from cenote.cli.reach import wait

    slept = wait(_sleep(common.load(), agent, timeout))
    if common.json:
        print_json({"agent": agent, "entries": slept.entries})
    else:
        print(f"{printable(agent)}: {slept.entries} entries have left KV")
    return 0


@command(app, "phase", panel=STATE)
def phase(common: Common, agent: Agent) -> int:
    """Say where an agent stands (cold, hydrating, active, flushing, expired), and what was done with it last."""
    from cenote.cli.reach import wait

    now, events = wait(_phase(common.load(flush__enabled=False), agent))
    told = [
        {"at": one.at.isoformat(timespec="milliseconds"), "event": one.event, "phase": one.phase, "by": one.holder}
        for one in events
    ]
    if common.json:
        print_json({"agent": agent, "phase": now, "events": told})
        return 0
    print(now)
    if told:
        print_table(["AT", "EVENT", "PHASE", "BY"], [list(one.values()) for one in told])
    return 0


async def _hydrate(config: "Config", agent: str, prefix: str) -> "Hydrated":
    from cenote.cli.reach import opened

    async with opened(config) as (store, _):
        state = store.agent(agent)
        return await (state.prefetch(prefix) if prefix else state.hydrate())


async def _sleep(config: "Config", agent: str, timeout: float) -> "Slept":
    from cenote.cli.reach import opened

    async with opened(config) as (store, _):
        return await store.agent(agent).sleep(timeout)


async def _phase(config: "Config", agent: str) -> "tuple[Phase, list[LifecycleEvent]]":
    from cenote.cli.reach import opened

    async with opened(config) as (store, _):
        state = store.agent(agent)
        return await state.phase(), await state.lifecycle_events(20)
