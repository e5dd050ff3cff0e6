"""`alerts`, `grafana`, `explain`: what watches a store, and what to do about what it says. They ask no server."""

from typing import Annotated

import typer

from cenote.cli.exits import BadUsage
from cenote.cli.options import OPERATION, Common, command
from cenote.cli.output import print_json

app = typer.Typer()


@command(app, "alerts", panel=OPERATION)
def alerts(common: Common) -> int:
    """Print alert rules for Prometheus, for a file that `rule_files` names; `cenote explain NAME` says what to do."""
    from cenote.telemetry.alerts import document, yaml

    if common.json:
        print_json(document())
    else:
        print(yaml(), end="")
    return 0


@command(app, "grafana", panel=OPERATION)
def grafana(common: Common) -> int:
    """Print a dashboard for Grafana, to be imported there: JSON, with --json or without."""
    from cenote.telemetry.grafana import document

    print_json(document())
    return 0


@command(app, "explain", panel=OPERATION)
def explain(
    common: Common,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="An alert, a check or an error; none: list the names.")
    ] = None,
) -> int:
    """Print what the runbook says of an alert, of a check of health or doctor, or of an error: what it means, how to
    look, and what to do.
    """
    from cenote.telemetry import runbook

    if name is None:
        names = list(runbook.sections())
        print_json(names) if common.json else print("\n".join(names))
        return 0
    found = runbook.section(name)
    if found is None:
        meant = runbook.similar(name)
        hint = f"did you mean {', '.join(meant)}?" if meant else "cenote explain lists all names"
        raise BadUsage(f"{name}: the runbook has no section of that name", hint=hint)
    if common.json:
        print_json({"name": found[0], "text": found[1]})
    else:
        print(f"{found[0]}\n\n{found[1]}")
    return 0
