"""`alerts` and `grafana`: what Prometheus and Grafana need to watch a store."""

import typer

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
