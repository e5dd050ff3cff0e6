"""What every command takes: where the configuration comes from, and how to print.

`@command(app)` appends these options to a command's own parameters; the command gets them as its first argument.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cenote.cli import help
from cenote.cli.exits import BadUsage, Exit
from cenote.cli.output import stop_printing
from cenote.errors import SetupError

if TYPE_CHECKING:
    from cenote.config import Config

_PANEL = "Which store"
STATE = "State"
SERVERS = "Servers"
OPERATION = "Operation"
SHOWS = "See it work"


@dataclass(frozen=True, kw_only=True)
class Common:
    """The options that all commands share, as they were given."""

    config: Path | None
    kv: str | None
    sql: str | None
    namespace: str | None
    data_dir: str | None
    settings: list[str]
    json: bool

    def overrides(self) -> dict[str, str]:
        """Everything that was given, as `section__field` → text. BadUsage when `--set` is malformed."""
        given = {
            "kv__url": self.kv,
            "sql__url": self.sql,
            "namespace": self.namespace,
            "embedded__data_dir": self.data_dir,
        }
        found = {name: value for name, value in given.items() if value is not None}
        for setting in self.settings:
            name, equals, value = setting.partition("=")
            if not equals or not name:
                raise BadUsage(f"--set {setting}: not of the form section.field=value", hint="see: cenote config")
            found[name.strip().replace(".", "__", 1)] = value
        return found

    def load(self, **defaults: Any) -> "Config":
        """The effective configuration; `defaults` are this command's own, and yield to what was given.

        Raises:
            BadUsage: a setting is wrong.
        """
        from cenote.config import load

        try:
            return load(self.config, overrides=defaults | self.overrides())
        except SetupError as error:
            message = str(error.args[0])
            for name in self.overrides():
                message = message.replace(name, name.replace("__", "."))
            raise BadUsage(message, hint="see: cenote config") from error


_OPTIONS: dict[str, Any] = {
    "config": Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file with settings.", rich_help_panel=_PANEL)
    ],
    "kv": Annotated[
        str | None,
        typer.Option("--kv", metavar="URL", help="NATS, nats://a,b,c; none: embedded.", rich_help_panel=_PANEL),
    ],
    "sql": Annotated[
        str | None,
        typer.Option(
            "--sql", metavar="URL", help="PostgreSQL, postgresql://…; none: embedded.", rich_help_panel=_PANEL
        ),
    ],
    "namespace": Annotated[
        str | None, typer.Option("--namespace", metavar="NAME", help="Prefix of all names.", rich_help_panel=_PANEL)
    ],
    "data_dir": Annotated[
        str | None,
        typer.Option(
            "--data-dir", metavar="DIR", help="Where embedded servers keep their data.", rich_help_panel=_PANEL
        ),
    ],
    "settings": Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.FIELD=VALUE", help="Any setting; may be repeated.", rich_help_panel=_PANEL
        ),
    ],
    "json": Annotated[bool, typer.Option("--json", help="Print JSON.")],
}
_DEFAULTS: dict[str, Any] = dict.fromkeys(_OPTIONS) | {"json": False}

Command = Callable[..., int]


def command(app: typer.Typer, name: str, *, panel: str | None = None) -> Callable[[Command], Command]:
    """Register `function(common, *its own parameters) -> exit code` with the common options appended."""

    def register(function: Command) -> Command:
        own = list(inspect.signature(function).parameters.values())[1:]
        shared = [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[option], annotation=annotation)
            for option, annotation in _OPTIONS.items()
        ]

        def run(**given: Any) -> int:
            chosen = {option: given.pop(option) for option in _OPTIONS}
            chosen["settings"] = chosen["settings"] or []
            try:
                return int(function(Common(**chosen), **given))
            except BrokenPipeError:  # typer would make it exit code 1
                stop_printing()
                return Exit.DONE

        run.__doc__ = function.__doc__
        run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]  # what typer reads
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *shared]}
        app.command(name, cls=help.Command, rich_help_panel=panel)(run)
        return function

    return register
