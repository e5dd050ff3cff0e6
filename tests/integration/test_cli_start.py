"""What `import cenote` and `cenote --help` must not import: deterministic, where times are not."""

import json
import subprocess
import sys

HEAVY = {"nats", "asyncpg", "pydantic", "pydantic_settings", "msgspec", "asyncio", "rich", "typer", "platformdirs"}
SHOW = "import json, sys; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"


def _imported(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{SHOW}"], capture_output=True, text=True, timeout=30, check=True
    )
    return set(json.loads(done.stderr))


def test_the_face_is_imported_without_a_driver() -> None:
    imported = _imported("import cenote")
    assert "cenote" in imported
    assert not imported & HEAVY
    assert not {name for name in imported if name.startswith("cenote.")}


def test_catching_an_error_costs_no_driver() -> None:
    imported = _imported("import cenote; cenote.ConflictError")
    assert "cenote.errors" in imported
    assert not imported & HEAVY


def test_help_imports_typer_and_nothing_of_the_store() -> None:
    for arguments, typer_needs in ((["--help"], {"typer"}), (["put", "--help"], {"typer", "pydantic"})):
        imported = _imported(f"from cenote.cli.run import run; assert run({arguments!r}) == 0")
        assert "typer" in imported
        assert not imported & (HEAVY - typer_needs)
        ours = {name for name in imported if name.startswith("cenote.")}
        assert not {name for name in ours if not name.startswith("cenote.cli") and name != "cenote.errors"}


def test_blocking_is_an_attribute_that_is_imported_when_it_is_used() -> None:
    assert "cenote.blocking" not in _imported("import cenote")
    assert "cenote.blocking" in _imported("import cenote; cenote.blocking.open")


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    config = [sys.executable, "-m", "cenote.cli", "config"]
    with subprocess.Popen(config, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0
