"""`flush`, `migrate`: bring state, or the schema, to where it should be."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cenote.cli.options import OPERATION, Common, command
from cenote.cli.output import print_json

if TYPE_CHECKING:
    from cenote.config import Config
    from cenote.sql.migrate import Phase

app = typer.Typer()


@command(app, "flush", panel=OPERATION)
def flush(
    common: Common,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0, help="Give up after this.")] = 60,
) -> int:
    """Wait until everything acknowledged so far, by anyone, is in PostgreSQL, and flush it if nobody else does."""
    from cenote.cli.reach import wait

    took_ms, rows = wait(_flush(common.load(), timeout))
    if common.json:
        print_json({"flushed": True, "took_ms": took_ms, "sql_rows": rows})
    else:
        print(f"everything is in PostgreSQL ({took_ms} ms)")
    return 0


@command(app, "migrate", panel=OPERATION)
def migrate(
    common: Common,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be applied.")] = False,
    print_sql: Annotated[
        bool, typer.Option("--print", help="Print all of it as a script for psql; asks no server.")
    ] = False,
    phase: Annotated[
        Literal["pre", "post"] | None,
        typer.Option("--phase", help="Stop before the first migration of the other phase (rolling upgrades)."),
    ] = None,
) -> int:
    """Bring the schema in PostgreSQL up to date."""
    from cenote.cli.reach import wait

    config = common.load(flush__enabled=False)
    if print_sql:
        from cenote.sql.migrate import print_sql as script

        text = script(config.names)
        print_json({"sql": text}) if common.json else print(text, end="")
        return 0
    lines = wait(_migrate(config, phase, dry_run=dry_run))
    form = None if dry_run or phase == "pre" else wait(_raise_format(config))
    if common.json:
        print_json({"pending" if dry_run else "applied": lines, "format": form})
        return 0
    for line in lines:
        print(line)
    if form is not None:
        print(f"from now on entries are written in format {form}")
    print(("nothing to apply" if not lines else f"{len(lines)} to apply") if dry_run else _summary(lines))
    return 0


def _summary(lines: list[str]) -> str:
    return f"{len(lines)} applied" if lines else "the schema is up to date"


async def _flush(config: "Config", timeout: float) -> tuple[int, int | None]:
    import time

    from cenote.cli.reach import opened

    async with opened(config) as (store, _):
        started = time.monotonic()
        await store.flush(timeout)
        took_ms = round((time.monotonic() - started) * 1000)
        return took_ms, (await store.stats()).sql_rows


async def _migrate(config: "Config", phase: "Phase | None", *, dry_run: bool) -> list[str]:
    from cenote.cli.reach import sql_only
    from cenote.sql import migrate as migrations

    async with sql_only(config, current=False) as table:
        if dry_run:
            return await migrations.plan(table.db)
        return [f"{m.number:04} {m.name} ({m.phase})" for m in await migrations.migrate(table.db, "auto", phase=phase)]


async def _raise_format(config: "Config") -> int | None:
    from cenote.model.entry import FORMAT

    if FORMAT == 1:  # what every cenote writes: NATS need not be asked
        return None
    from cenote.cli.reach import both_sides
    from cenote.engine.formats import raise_format

    async with both_sides(config) as ground:
        return await raise_format(ground)
