"""`checkpoint`: what agents were, and becoming it again; `history`: what is still known of a key's past."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cenote.cli.entries import Agent, Key
from cenote.cli.help import Group
from cenote.cli.options import STATE, Common, command
from cenote.cli.output import note, print_json, print_table, printable, short
from cenote.cli.past import restore

if TYPE_CHECKING:
    from cenote.agent import AgentState
    from cenote.engine.checkpoint import Checkpoint

app = typer.Typer(cls=Group, help="What agents were, and what became of it.")
beside = typer.Typer()

_HEADERS = ["CHECKPOINT", "SEQ", "AT", "HOLDS", "CHANGED", "REMOVED", "BYTES", "LABEL"]


@command(app, "create")
def create(
    common: Common,
    agent: Agent,
    label: Annotated[str | None, typer.Option("--label", metavar="TEXT", help="For people.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Retention never removes it.")] = False,
) -> int:
    """Keep what an agent is now, and print the checkpoint's id."""
    made = _with(common, agent, lambda state: state.checkpoint(label, keep=keep))
    if common.json:
        print_json(_document(made))
    else:
        print(made.id)
    return 0


@command(app, "list")
def listed(
    common: Common,
    agent: Agent,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="So many at most.")] = 100,
    cursor: Annotated[
        str | None, typer.Option("--cursor", metavar="CURSOR", help="Go on where another page ended.")
    ] = None,
) -> int:
    """List an agent's checkpoints, the newest first; exit code 1 when there are none."""
    page = _with(common, agent, lambda state: state.checkpoints(limit=limit, cursor=cursor))
    if common.json:
        print_json({"checkpoints": [_document(one) for one in page], "next": page.next})
    elif page.items:
        print_table(_HEADERS, map(_row, page))
        if page.next is not None:
            note(f"there are more: --cursor {page.next}")
    else:
        print("no checkpoints")
    return 0 if page.items else 1


@command(app, "delete")
def delete(
    common: Common, agent: Agent, checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Its id.")]
) -> int:
    """Remove a checkpoint, whether it was to be kept or not; those that stand on it stay whole."""
    _with(common, agent, lambda state: state.delete_checkpoint(checkpoint))
    if common.json:
        print_json({"deleted": checkpoint})
    else:
        print(f"{printable(checkpoint)} is gone")
    return 0


@command(app, "diff")
def diff(
    common: Common,
    agent: Agent,
    first: Annotated[str, typer.Argument(metavar="FIRST", help="The id of a checkpoint.")],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="The id of another one.")],
) -> int:
    """Tell what became of an agent's keys from one checkpoint to another; exit code 1 when nothing did."""
    found = _with(common, agent, lambda state: state.diff(first, second))
    if common.json:
        print_json({"added": list(found.added), "removed": list(found.removed), "changed": list(found.changed)})
    else:
        signs = {"+": found.added, "-": found.removed, "~": found.changed}
        for sign, keys in signs.items():
            for key in keys:
                print(f"{sign} {printable(key)}")
        if not found:
            print("no difference")
    return 0 if found else 1


command(app, "restore")(restore)


@command(beside, "history", panel=STATE)
def history(common: Common, agent: Agent, key: Key) -> int:
    """Tell what is still known of a key's past: versions that checkpoints keep, and conflicts.

    Writes that were overwritten before a checkpoint was made are kept nowhere.
    """
    found = _with(common, agent, lambda state: state.history(key))
    if common.json:
        print_json(
            {
                "versions": [
                    {
                        "version": str(one.version), "written_at": one.written_at.isoformat(), "deleted": one.deleted,
                        "value": one.value, "checkpoint": str(one.checkpoint), "seq": one.seq,
                    }
                    for one in found.versions
                ],
                "conflicts": len(found.conflicts), "complete": found.complete,
            }
        )  # fmt: skip
        return 0 if found.versions else 1
    if found.versions:
        rows = (
            (str(one.version), _at(one.written_at), one.seq, "deleted" if one.deleted else short(one.value))
            for one in found.versions
        )
        print_table(["VERSION", "WRITTEN", "CHECKPOINT", "VALUE"], rows)
    else:
        print("no checkpoint holds a version of it")
    if found.conflicts:
        note(f"{len(found.conflicts)} conflicts: cenote conflicts --agent {printable(agent)} --key {printable(key)}")
    return 0 if found.versions else 1


def _with(common: Common, agent: str, ask: "Callable[[AgentState], Awaitable[Any]]") -> Any:
    from cenote.cli.reach import opened, wait

    config = common.load(flush__enabled=False)

    async def work() -> Any:
        async with opened(config) as (store, _):
            return await ask(store.agent(agent))

    return wait(work())


def _row(one: "Checkpoint") -> tuple[object, ...]:
    holds = "differences" if one.parent else "all"
    return str(one.id), one.seq, _at(one.at), holds, one.changed, one.removed, one.bytes, printable(one.label or "")


def _document(one: "Checkpoint") -> dict[str, object]:
    return {
        "id": str(one.id), "agent": one.agent, "seq": one.seq, "at": one.at.isoformat(), "version": str(one.version),
        "label": one.label, "metadata": one.metadata, "keep": one.keep,
        "parent": None if one.parent is None else str(one.parent),
        "group": None if one.group is None else str(one.group), "changed": one.changed, "removed": one.removed,
        "bytes": one.bytes, "digest": one.digest,
    }  # fmt: skip


def _at(moment: datetime) -> str:
    return moment.isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
