"""`repair`: compare NATS with PostgreSQL, and mend what differs."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cenote.cli.options import OPERATION, Common, command
from cenote.cli.output import note, print_json, print_table, printable

if TYPE_CHECKING:
    from cenote.config import Config
    from cenote.engine.repair_account import Repaired

app = typer.Typer()


@command(app, "repair", panel=OPERATION)
def repair(
    common: Common,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report only.")] = False,
    agent: Annotated[list[str] | None, typer.Option("--agent", metavar="AGENT", help="Only this agent's keys.")] = None,
) -> int:
    """Compare NATS with PostgreSQL by version and content, and mend what differs.

    What is merely not flushed yet is no difference. A run that was interrupted is gone on with. Exit code 1 when
    something differs still.
    """
    from cenote.cli.reach import wait

    done = wait(_repair(common.load(), dry_run, agent, tell=not common.json))
    if common.json:
        print_json(_plain(done))
    elif not done.found:
        print(f"{done.scanned} entries compared, no difference")
    else:
        rows = [(kind, count, done.mended.get(kind, 0)) for kind, count in sorted(done.found.items())]
        print_table(["DIFFERENCE", "FOUND", "MENDED"], rows)
        for one in done.findings[:10]:
            note(f"{one.kind}: {printable(one.agent)} {printable(one.key)}" + ("" if one.mended else ", not mended"))
        print(f"{done.scanned} entries compared")
    return 1 if done.left else 0


async def _repair(config: "Config", dry_run: bool, agents: list[str] | None, *, tell: bool) -> "Repaired":
    from cenote.cli.reach import opened

    told = 0

    def progress(so_far: "Repaired") -> None:
        nonlocal told
        if tell and so_far.scanned - told >= 50_000:
            told = so_far.scanned
            note(f"{told} entries compared, {sum(so_far.found.values())} differ")

    async with opened(config) as (store, _):
        return await store.repair(dry_run, agents=agents or None, progress=progress)


def _plain(done: "Repaired") -> dict[str, Any]:
    return {
        "id": str(done.id), "dry_run": done.dry_run, "scanned": done.scanned, "found": done.found,
        "mended": done.mended, "left": done.left, "findings": [asdict(one) for one in done.findings],
    }  # fmt: skip
