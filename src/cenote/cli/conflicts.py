"""`conflicts`: what happened when two writes met under one key, and what was discarded."""

import textwrap
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cenote.cli.options import OPERATION, Common, command
from cenote.cli.output import note, print_json, print_table, short

if TYPE_CHECKING:
    from cenote.config import Config
    from cenote.engine.conflict_log import Conflict

app = typer.Typer()

_SIDE_CHARS: Final = 24
_WHY_CHARS: Final = 60


@command(app, "conflicts", panel=OPERATION)
def conflicts(
    common: Common,
    agent: Annotated[str | None, typer.Option("--agent", metavar="AGENT", help="Only of this agent.")] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="KEY", help="Only of this key.")] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", metavar="NAME", help="Only those decided by it: lww, causal, …")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only of the last 90s, 15m, 12h, 7d.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="So many at most.")] = 100,
) -> int:
    """List meetings of two writes in which something was discarded or refused, the newest first."""
    from cenote.cli.reach import wait
    from cenote.cli.values import duration

    wanted = {
        "agent": agent,
        "key": key,
        "strategy": strategy,
        "since": None if since is None else duration(since),
        "limit": limit,
    }
    found = wait(_conflicts(common.load(flush__enabled=False), wanted))
    if common.json:
        print_json([_document(one) for one in found])
    elif found:
        headers = ["AT", "AGENT", "KEY", "STRATEGY", "OUTCOME", "CURRENT", "INCOMING", "DISCARDED, OR WHY"]
        print_table(headers, map(_row, found))
        if len(found) == limit:
            note(f"the newest {limit}; --limit shows more")
    else:
        print("no conflicts")
    return 0  # that writes met and were decided is no trouble


async def _conflicts(config: "Config", wanted: dict[str, Any]) -> list["Conflict"]:
    from cenote.cli.reach import opened

    async with opened(config) as (store, _):
        return await store.conflicts(**wanted)


def _row(one: "Conflict") -> list[object]:
    at = one.at.isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
    sides = [short(one.current, _SIDE_CHARS), short(one.incoming, _SIDE_CHARS)]
    why = ", ".join(one.discarded) or one.reason or ""
    return [at, one.agent, one.key, one.strategy, one.outcome, *sides, textwrap.shorten(why, _WHY_CHARS)]


def _document(one: "Conflict") -> dict[str, Any]:
    from cenote.cli.values import document

    plain = {name: getattr(one, name) for name in ("at", "agent", "key", "strategy", "outcome", "writer", "operation")}
    values = {name: document(getattr(one, name))[0] for name in ("current", "incoming", "result")}
    return plain | values | {"discarded": one.discarded, "versions": one.versions, "reason": one.reason}
