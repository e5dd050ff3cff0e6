"""`adopt`: make one store of a NATS and a PostgreSQL that do not belong together (flow rule 8)."""

from typing import TYPE_CHECKING, Annotated

import typer

from cenote.cli.exits import BadUsage, Exit
from cenote.cli.options import OPERATION, Common, command
from cenote.cli.output import note, print_json

if TYPE_CHECKING:
    from cenote.config import Config
    from cenote.engine.adoption import Adopted, Sides

app = typer.Typer()


@command(app, "adopt", panel=OPERATION)
def adopt(
    common: Common,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show both sides and what would happen.")] = False,
) -> int:
    """Make one store of a NATS and a PostgreSQL that belong to different ones.

    Shows what each side holds, asks, and begins a new epoch in which everything that NATS holds is flushed into
    PostgreSQL. Where both hold a key, NATS wins, and PostgreSQL's value is kept as a dead letter. Refused while a
    process flushes on either side: stop all of both stores first. Repeating it is harmless.
    """
    from cenote.cli.reach import wait

    config = common.load(flush__enabled=False)
    sides = wait(_sides(config))
    document = {"sides": sides.document(), "adopted": None}
    if not common.json:
        _print(sides)
    if sides.joined or dry_run:
        if common.json:
            print_json(document)
        return Exit.DONE
    if not yes:
        if common.json:
            raise BadUsage("--json cannot ask", hint="add --yes, or look first: --dry-run")
        if not typer.confirm("Make one store of them?", err=True):
            note("nothing was changed")
            return Exit.DEGRADED
    adopted = wait(_adopt(config))
    if common.json:
        print_json(document | {"adopted": adopted and adopted._asdict()})
    elif adopted is not None:
        _tell(adopted)
    return Exit.DONE


def _print(sides: "Sides") -> None:
    from cenote.model.entry import from_ms

    flushed = sides.sql_flushed_ms
    last = "never" if flushed is None else from_ms(flushed).isoformat(timespec="seconds")
    print(f"NATS        store {sides.nats_store or 'none'}, epoch {sides.nats_epoch or 'none'}")
    print(f"            {sides.nats_entries:,} entries, {sides.nats_bytes:,} bytes")
    print(f"            flushed by {sides.nats_flusher or 'nobody'}")
    print(f"PostgreSQL  store {sides.sql_store or 'none'}, epoch {sides.sql_epoch or 'none'}")
    print(f"            {sides.sql_rows:,} rows, last flush {last}")
    print(f"            written to by {sides.sql_flusher or 'nobody'}")
    if sides.joined:
        print("They are one store: nothing to adopt.")
        return
    print(
        "Adopting makes one store of them. Everything that NATS holds is flushed into PostgreSQL; where both hold a\n"
        "key, the one in NATS wins, and the row it replaces is kept: cenote dead-letters list. Rows that NATS does\n"
        "not hold stay as they are. What only another PostgreSQL or another NATS holds is not brought over; either of\n"
        "them is refused from then on."
    )


def _tell(adopted: "Adopted") -> None:
    print(
        f"store {adopted.store_id}, epoch {adopted.epoch}: {adopted.entries:,} entries are on their way to PostgreSQL"
    )
    if adopted.replaced:
        print(f"{adopted.replaced:,} rows are replaced; their values: cenote dead-letters list")
    if adopted.blobs:
        print(
            f"{adopted.blobs:,} large values are references; what the former PostgreSQL holds of them must be copied:"
            " table blobs"
        )
    print("to bring them there now: cenote flush")


async def _sides(config: "Config") -> "Sides":
    from cenote.cli.reach import both_sides
    from cenote.engine.adoption import sides

    async with both_sides(config) as ground:
        return await sides(ground)


async def _adopt(config: "Config") -> "Adopted | None":
    from cenote.cli.reach import both_sides
    from cenote.engine.adoption import adopt
    from cenote.sql.migrate import migrate

    async with both_sides(config) as ground:
        await migrate(ground.table.db, "auto" if ground.config.migrates else "check")
        return await adopt(ground)
