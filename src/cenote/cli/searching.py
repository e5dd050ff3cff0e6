"""`search`: which keys of which agents hold what."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cenote.cli.exits import BadUsage
from cenote.cli.options import STATE, Common, command
from cenote.cli.output import note, print_json, print_table, short

if TYPE_CHECKING:
    from cenote.config import Config
    from cenote.model.page import Page
    from cenote.repositories.agents_content import StateHit

app = typer.Typer()


@command(app, "search", panel=STATE)
def search(
    common: Common,
    where: Annotated[str, typer.Argument(metavar="FILTER", help='JSON: {"goal.name": "cave", "step": {"gt": 3}}')],
    agent: Annotated[str | None, typer.Option("--agent", metavar="AGENT", help="Only keys of this agent.")] = None,
    prefix: Annotated[str, typer.Option("--prefix", metavar="PREFIX", help="Only keys that begin with it.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="So many at most.")] = 100,
) -> int:
    """Find keys by their content, as PostgreSQL has it; exit code 1 when there are none."""
    from cenote.cli.reach import wait
    from cenote.cli.values import document

    try:
        wanted = json.loads(where)
    except ValueError as error:
        raise BadUsage(f"FILTER is no JSON: {error}", hint="""such as '{"goal.name": "cave"}'""") from error
    options = {"agent": agent, "key_prefix": prefix, "limit": limit}
    found = wait(_search(common.load(flush__enabled=False), wanted, options))
    if common.json:
        print_json(
            [
                {"agent": hit.agent, "key": hit.key, "value": document(hit.value)[0], "version": str(hit.version)}
                for hit in found
            ]
        )
    elif found.items:
        print_table(["AGENT", "KEY", "VALUE"], [(hit.agent, hit.key, short(hit.value)) for hit in found])
    if found.next is not None:
        note(f"the first {len(found)}; --limit shows more")
    elif not found.items:
        note("nothing fits")
    return 0 if found.items else 1


async def _search(config: "Config", where: Any, options: dict[str, Any]) -> "Page[StateHit]":
    from cenote.cli.reach import opened

    async with opened(config) as (store, _):
        return await store.agents.search_state(where, **options)
