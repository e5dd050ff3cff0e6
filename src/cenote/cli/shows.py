"""`demo`, `bench`: see it work. They live in rooms of their own, imported when they are asked for."""

from typing import Annotated

import typer

from cenote.cli.help import Command
from cenote.cli.options import SHOWS

app = typer.Typer()

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("demo", cls=Command, rich_help_panel=SHOWS)
def demo(
    modules: Annotated[int | None, typer.Option("--modules", min=20, help="How many modules are surveyed.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, help="How many processes survey them.")] = 4,
    no_faults: Annotated[bool, typer.Option("--no-faults", help="Kill nobody.")] = False,
    data_dir: Annotated[
        str | None, typer.Option("--data-dir", metavar="DIR", help="Keep the data here; none: a temporary directory.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Watch a swarm survive kill -9 of its workers and of both servers.

    Exit code 1 when anything was lost, or when what should have been shown did not happen.
    """
    from cenote.demo import run

    return run(modules=modules, workers=workers, faults=not no_faults, as_json=as_json, data_dir=data_dir)


@app.command("bench", cls=Command, rich_help_panel=SHOWS)
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds and smaller sizes.")] = False,
    as_json: Json = False,
) -> int:
    """Print the speed table: cenote against the bare drivers, in turns, in one run."""
    from cenote.bench import run

    return run(quick=quick, as_json=as_json)
