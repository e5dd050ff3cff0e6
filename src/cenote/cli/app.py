"""The tree of commands."""

from typing import Annotated

import typer

from cenote.cli import (
    adopt,
    checkpoints,
    conflicts,
    dead_letters,
    doctor,
    entries,
    knowledge,
    life,
    listing,
    messages,
    moving,
    past,
    repair,
    searching,
    servers,
    settings,
    shows,
    status,
    tasks,
    top,
    watching,
)
from cenote.cli.help import Group
from cenote.cli.options import OPERATION

app = typer.Typer(
    name="cenote",
    help="The state layer for agent swarms: as fast as a KV write, as durable as PostgreSQL, never silently lost.",
    epilog="Exit codes: 0 healthy or done, 1 degraded or not found, 2 unhealthy or failed, 64 usage.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=Group,
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        settings.print_version(as_json=False)
        raise typer.Exit(0)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for room in (
    shows,
    servers,
    status,
    top,
    doctor,
    entries,
    listing,
    searching,
    moving,
    life,
    past,
    adopt,
    repair,
    conflicts,
    watching,
):
    app.add_typer(room.app)
app.add_typer(checkpoints.beside)
app.add_typer(checkpoints.app, name="checkpoint", rich_help_panel=OPERATION)
app.add_typer(dead_letters.app, name="dead-letters", rich_help_panel=OPERATION)
app.add_typer(knowledge.app, name="knowledge", rich_help_panel=OPERATION)
app.add_typer(messages.app, name="messages", rich_help_panel=OPERATION)
app.add_typer(tasks.app, name="tasks", rich_help_panel=OPERATION)
app.add_typer(settings.app)
