"""`restore`, `fork`, `export`, `import`: an agent becomes what a checkpoint, or a file, holds."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cenote.cli.entries import Agent
from cenote.cli.options import STATE, Common, command
from cenote.cli.output import note, print_json, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cenote.config import Config
    from cenote.engine.restored import Restored
    from cenote.engine.transfer import Imported

app = typer.Typer()


@command(app, "restore", panel=STATE)
def restore(
    common: Common,
    agent: Agent,
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="[CHECKPOINT]", help="Its id; none: finish what somebody has begun.")
    ] = None,
) -> int:
    """Make an agent again what a checkpoint holds.

    What differs is written anew, deletes included; what the agent is now is kept as a checkpoint first. Keys that
    others write meanwhile stay as they wrote them, and are named.
    """
    from cenote.cli.reach import wait

    done = wait(_restore(common.load(), agent, checkpoint))
    if common.json:
        print_json([_plain(one) for one in done])
        return 0
    if not done:
        print(f"{printable(agent)}: no restore was left unfinished")
    for one in done:
        print(
            f"{printable(one.agent)} is again what checkpoint {one.checkpoint.seq} holds: "
            f"{one.written} keys written, {one.deleted} deleted"
        )
        print(f"what it was before is checkpoint {one.before.seq}: {one.before.id}")
        if one.left:
            note(f"others have written since, and these stay: {', '.join(map(printable, one.left))}")
    return 0


@command(app, "fork", panel=STATE)
def fork(
    common: Common,
    agent: Agent,
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="The id of one of its checkpoints.")],
    new_agent: Annotated[str, typer.Argument(metavar="NEW_AGENT", help="Who is to begin as that.")],
) -> int:
    """Begin another agent as what a checkpoint holds.

    It takes one row; values are copied when somebody first reads them.
    """
    from cenote.cli.reach import wait

    wait(_fork(common.load(flush__enabled=False), agent, checkpoint, new_agent))
    if common.json:
        print_json({"agent": new_agent, "of": agent, "checkpoint": checkpoint})
    else:
        print(f"{printable(new_agent)} begins as checkpoint {printable(checkpoint)} of {printable(agent)}")
    return 0


@command(app, "export", panel=STATE)
def export(common: Common, agent: Agent) -> int:
    """Write an agent with its checkpoints to standard output, for `cenote import`.

    A file without its last line is not whole: `import` refuses it.
    """
    from cenote.cli.reach import wait

    wait(_export(common.load(), agent))
    return 0


@command(app, "import", panel=STATE)
def import_(
    common: Common,
    file: Annotated[
        typer.FileBinaryRead, typer.Argument(metavar="[FILE]", help="What `export` wrote; -: stdin.")
    ] = "-",  # type: ignore[assignment]  # what typer opens
) -> int:
    """Take an agent that `export` wrote, with its checkpoints; it must not exist here.

    All of it is checked before any of it is to be seen; where it is damaged, the line is named.
    """
    from cenote.cli.reach import wait

    done = wait(_import(common.load(), file))
    if common.json:
        print_json(
            {
                "agent": done.agent,
                "keys": done.keys,
                "checkpoints": done.checkpoints,
                "checkpoint": str(done.checkpoint.id),
            }
        )
    else:
        print(f"{printable(done.agent)}: {done.keys} keys and {done.checkpoints} checkpoints")
    return 0


async def _export(config: "Config", agent: str) -> None:
    from cenote.cli.reach import opened

    async with opened(config) as (store, _):
        async for line in store.agent(agent).export():
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


async def _fork(config: "Config", agent: str, checkpoint: str, new_agent: str) -> None:
    from cenote.cli.reach import opened

    async with opened(config) as (store, _):
        await store.agent(agent).fork(new_agent, checkpoint)


async def _import(config: "Config", lines: "Iterable[bytes]") -> "Imported":
    from cenote.cli.reach import opened

    async with opened(config) as (store, _):
        return await store.import_agent(lines)


def _plain(one: "Restored") -> dict[str, object]:
    return {
        "agent": one.agent, "checkpoint": str(one.checkpoint.id), "before": str(one.before.id),
        "written": one.written, "deleted": one.deleted, "left": list(one.left), "at_once": one.at_once,
    }  # fmt: skip


async def _restore(config: "Config", agent: str, checkpoint: str | None) -> "list[Restored]":
    from cenote.cli.reach import opened

    async with opened(config) as (store, _):
        state = store.agent(agent)
        return await state.finish_restore() if checkpoint is None else [await state.restore(checkpoint)]
