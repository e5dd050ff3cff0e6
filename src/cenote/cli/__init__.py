"""The command line: `cenote`.

Exit codes: 0 healthy or done, 1 degraded or not found, 2 unhealthy or failed, 64 usage. What is printed on stdout is
the answer (`--json`: one JSON document), everything else goes to stderr. Nothing but typer is imported before a command
has been chosen, so that `cenote --help` is quick.
"""


def main() -> None:
    """The entry point of the `cenote` script."""
    import sys

    from cenote.cli.run import run

    sys.exit(run(sys.argv[1:]))
