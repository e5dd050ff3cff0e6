"""`dead-letters`: writes that PostgreSQL refused, and what becomes of them (flow rule 14)."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cenote.cli.help import Group
from cenote.cli.options import Common, command
from cenote.cli.output import print_json, print_table, printable

if TYPE_CHECKING:
    from cenote.config import Config
    from cenote.engine.letters import DeadLetter

app = typer.Typer(
    cls=Group, help="Writes that PostgreSQL refused: they are served as they were, and wait for a decision."
)

Id = Annotated[int, typer.Argument(metavar="ID", help="As `dead-letters list` prints it.")]


@command(app, "list")
def listed(common: Common) -> int:
    """List what waits for a decision; exit code 1 when something does."""
    from cenote.cli.reach import wait
    from cenote.model.key import agent_ref

    found: list[dict[str, Any]] = [
        {
            "id": letter.id,
            "agent_id": str(agent_ref(letter.agent).id),
            "agent": printable(letter.agent),
            "key": printable(letter.key),
            "version": str(letter.version),
            "bytes": letter.size,
            "reason": letter.reason,
            "created_at": letter.created_at.isoformat(timespec="seconds"),
        }
        for letter in wait(_letters(common.load(flush__enabled=False)))
    ]
    if common.json:
        print_json(found)
    elif found:
        print_table(
            ["ID", "AGENT ID", "AGENT", "KEY", "VERSION", "BYTES", "REASON", "CREATED AT"],
            [list(one.values()) for one in found],
        )
    else:
        print("no dead letters")
    return 1 if found else 0


@command(app, "retry")
def retry(common: Common, letter: Id) -> int:
    """Put a write into its row after all, under its own version."""
    from cenote.cli.reach import wait

    applied = wait(_retry(common.load(flush__enabled=False), letter))
    if common.json:
        print_json({"id": letter, "resolved": True, "applied": applied})
    else:
        print(f"{letter}: " + ("it is in its row now" if applied else "resolved; a newer write had come meanwhile"))
    return 0


@command(app, "discard")
def discard(common: Common, letter: Id) -> int:
    """Take a letter off the list; its row goes on serving the exact bytes."""
    from cenote.cli.reach import wait

    wait(_discard(common.load(flush__enabled=False), letter))
    if common.json:
        print_json({"id": letter, "resolved": True})
    else:
        print(f"{letter}: off the list; the key still reads as it was written")
    return 0


async def _letters(config: "Config") -> list["DeadLetter"]:
    from cenote.cli.reach import sql_only
    from cenote.engine.letters import DeadLetters
    from cenote.model.page import PAGE_COUNT_MAX

    found: list[DeadLetter] = []
    async with sql_only(config) as table:
        while page := await DeadLetters(table).list(found[-1].id if found else 0, PAGE_COUNT_MAX):
            found += page
    return found


async def _retry(config: "Config", letter_id: int) -> bool:
    from cenote.cli.reach import sql_only
    from cenote.engine.letters import DeadLetters

    async with sql_only(config) as table:
        return await DeadLetters(table).retry(letter_id)


async def _discard(config: "Config", letter_id: int) -> None:
    from cenote.cli.reach import sql_only
    from cenote.engine.letters import DeadLetters

    async with sql_only(config) as table:
        await DeadLetters(table).discard(letter_id)
