"""`ls`, `watch`, `agents`, `counters`: what there is, and what happens."""

from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cenote.cli.entries import Agent
from cenote.cli.options import STATE, Common, command
from cenote.cli.output import note, print_json, print_table, printable, short

if TYPE_CHECKING:
    from cenote.config import Config
    from cenote.model.entry import Entry
    from cenote.sql.rows import AgentRow

app = typer.Typer()

Prefix = Annotated[str, typer.Argument(metavar="PREFIX", help="Only keys that begin with it.")]


@command(app, "ls", panel=STATE)
def ls(
    common: Common,
    agent: Agent,
    prefix: Prefix = "",
    values: Annotated[bool, typer.Option("--values", "-l", help="With their values.")] = False,
) -> int:
    """List the keys of an agent, in KV and SQL; exit code 1 when there are none."""
    from cenote.cli.reach import wait
    from cenote.cli.values import document

    found = dict(sorted(wait(_items(common.load(flush__enabled=False), agent, prefix, values=values)).items()))
    if common.json:
        print_json({key: document(value)[0] for key, value in found.items()} if values else list(found))
    elif values and found:
        print_table(["KEY", "VALUE"], [(key, short(value)) for key, value in found.items()])
    else:
        for key in found:
            print(printable(key))
    if not found:
        note(f"{agent!r} has no keys" + (f" that begin with {prefix!r}" if prefix else ""))
    return 0 if found else 1


@command(app, "watch", panel=STATE)
def watch(
    common: Common,
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="A name; with * or ?: all agents that match.")],
    prefix: Prefix = "",
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="VERSION", help="0: what there is first; a version: what came after it first."),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="End after so many events.")] = None,
) -> int:
    """Print puts, deletes and expiries as they happen, until Ctrl-C. With --json one document a line."""
    from cenote.cli.reach import wait

    try:
        wait(_watch(common, agent, prefix, since, count))
    except KeyboardInterrupt:
        return 0
    return 0


@command(app, "agents", panel=STATE)
def agents(common: Common) -> int:
    """List the agents that PostgreSQL knows, what they say of themselves, the phase that was written down last (see
    `phase`) and the number of their live keys; exit code 1 when there are none."""
    from cenote.cli.reach import wait
    from cenote.model.entry import from_us
    from cenote.model.key import from_sql_key

    found = [
        {
            "name": from_sql_key(row.name),
            "id": str(row.agent_id),
            "type": row.agent_type,
            "status": row.status,
            "phase": row.phase,
            "keys": row.keys,
            "flushed_at": None if row.updated_us is None else from_us(row.updated_us).isoformat(timespec="seconds"),
            "seen_at": None if row.seen_us is None else from_us(row.seen_us).isoformat(timespec="seconds"),
        }
        for row in wait(_agents(common.load(flush__enabled=False)))
        if row.keys or not row.deleted
    ]
    found.sort(key=lambda agent: str(agent["name"]))
    if common.json:
        print_json(found)
    elif found:
        print_table(
            ["NAME", "ID", "TYPE", "STATUS", "PHASE", "KEYS", "FLUSHED AT", "SEEN AT"],
            [list(agent.values()) for agent in found],
        )
    else:
        print("no agents yet")
    return 0 if found else 1


@command(app, "counters", panel=STATE)
def counters(
    common: Common,
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="Only counters that begin with it.")] = "",
) -> int:
    """List counters with their totals, as KV has them; exit code 1 when there are none."""
    from cenote.cli.reach import wait

    found = dict(sorted(wait(_counters(common.load(flush__enabled=False), prefix)).items()))
    if common.json:
        print_json(found)
    elif found:
        print_table(["COUNTER", "TOTAL"], [(printable(name), str(total)) for name, total in found.items()])
    else:
        note("no counters" + (f" that begin with {prefix!r}" if prefix else ""))
    return 0 if found else 1


async def _counters(config: "Config", prefix: str) -> dict[str, int]:
    from cenote.cli.reach import opened

    async with opened(config) as (store, _):
        return {name: total async for name, total in store.counters(prefix)}


async def _items(config: "Config", agent: str, prefix: str, *, values: bool) -> dict[str, Any]:
    from cenote.cli.reach import opened

    async with opened(config) as (store, _):
        state = store.agent(agent)
        if values:
            return {key: value async for key, value in state.items(prefix)}
        return {key: None async for key in state.keys(prefix)}


async def _watch(common: Common, agent: str, prefix: str, since: str | None, count: int | None) -> None:
    from cenote.cli.entries import condition
    from cenote.cli.reach import opened

    start = condition(since)
    async with opened(common.load(flush__enabled=False)) as (store, _):
        if any(sign in agent for sign in "*?["):
            events = store.watch(agent, prefix=prefix, since=start)
        else:
            events = store.agent(agent).watch(prefix, since=start)
        async with aclosing(events) as open_events:  # type: ignore[type-var]  # they are asynchronous generators
            async for entry in open_events:
                _print_event(entry, as_json=common.json)
                if count is not None and (count := count - 1) == 0:
                    return


def _print_event(entry: "Entry", *, as_json: bool) -> None:
    from cenote.cli.values import document

    if not as_json:
        at = entry.written_at.strftime("%H:%M:%S.%f")[:-3]
        value = short(entry.value) if entry.change == "put" else ""
        print(f"{at} {entry.change:6} {printable(entry.agent)} {printable(entry.key)} {value}".rstrip(), flush=True)
        return
    value, tagged = document(entry.value)
    event = {
        "change": entry.change,
        "agent": entry.agent,
        "key": entry.key,
        "value": value,
        "tagged": tagged,
        "version": str(entry.version),
        "written_at": entry.written_at,
    }
    print_json(event, indent=None)


async def _agents(config: "Config") -> list["AgentRow"]:
    from cenote.cli.reach import sql_only
    from cenote.limits import LIST_PAGE_KEYS

    found: list[AgentRow] = []
    async with sql_only(config) as table:
        while page := await table.agents_page(found[-1].agent_id if found else None, LIST_PAGE_KEYS):
            found += page
    return found
