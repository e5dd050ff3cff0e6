"""Help as plain text, by panels. typer's own help in colours costs more than the rest of the command line together
(it imports rich's Markdown and syntax highlighting: 318 of 580 ms where we measured)."""

from collections.abc import Iterable
from typing import Any, Final

from typer.core import TyperCommand, TyperGroup

OTHER: Final = "Options"
Row = tuple[str, tuple[str, str]]


def _write(formatter: Any, rows: Iterable[Row]) -> None:
    """The rows under their panels, in the order in which the panels first appear."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for panel, row in rows:
        panels.setdefault(panel, []).append(row)
    for panel, found in panels.items():
        with formatter.section(panel):
            formatter.write_dl(found)


def _parameters(command: Any, context: Any) -> list[Row]:
    rows: list[Row] = []
    for parameter in command.get_params(context):
        row = parameter.get_help_record(context)
        if row is not None:
            usual = "Arguments" if parameter.param_type_name == "argument" else OTHER
            rows.append((getattr(parameter, "rich_help_panel", None) or usual, row))
    rows.sort(key=lambda row: ("Arguments", OTHER).index(row[0]) if row[0] in ("Arguments", OTHER) else 2)
    return rows


class Command(TyperCommand):
    """A command whose options stand under their panels."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write(formatter, _parameters(self, ctx))


class Group(TyperGroup):
    """A group whose commands stand under their panels, each with its first sentence."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write(formatter, _parameters(self, ctx))
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = []
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((command.rich_help_panel or "Commands", (name, command.get_short_help_str(300))))
        _write(formatter, rows)
