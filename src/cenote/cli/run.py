"""One run of the command line: from arguments to an exit code, with one clear line for whatever goes wrong."""

import os
import sys
from collections.abc import Sequence
from typing import Any

from cenote.cli.exits import Exit, exit_of
from cenote.errors import CenoteError

_TRACEBACK = "CENOTE_TRACEBACK"


def run(arguments: Sequence[str]) -> int:
    """Run a command; its exit code. Errors are told on stderr, and with `--json` on stdout as well."""
    from typer.exceptions import Abort, TyperException

    from cenote.cli.app import app
    from cenote.cli.output import stop_printing

    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # both are TextIOWrapper here
    try:
        code = app(list(arguments), prog_name="cenote", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except BrokenPipeError:
        stop_printing()
        return Exit.DONE
    except Abort:
        return Exit.INTERRUPTED
    except TyperException as error:
        return _tell(arguments, _usage(error), Exit.USAGE)
    except CenoteError as error:
        return _tell(arguments, error, exit_of(error))
    except Exception as error:  # noqa: BLE001 - the top of the program: a bug is told in one line, too
        return _tell(arguments, error, Exit.FAILED)


def _usage(error: Any) -> CenoteError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "cenote"
    message = error.format_message().rstrip(".").replace("Value error, ", "")
    return CenoteError(message[:1].lower() + message[1:], hint=f"see: {path} --help")


def _tell(arguments: Sequence[str], error: BaseException, code: Exit) -> int:
    if os.environ.get(_TRACEBACK) == "1":
        import traceback

        traceback.print_exception(error)
    from cenote.cli.output import note, print_json

    if isinstance(error, CenoteError):
        message, hint, name = str(error.args[0]), error.hint, type(error).__name__
        more = f"see: cenote explain {name}" if type(error).__module__ == CenoteError.__module__ else None
        kind = {"code": "USAGE" if code is Exit.USAGE else error.code, "retryable": error.retryable}
    else:
        message, hint = f"{type(error).__name__}: {error}", f"{_TRACEBACK}=1 shows where"
        more = None
        kind = {"code": "ERROR", "retryable": False}
    if "--json" in arguments:
        print_json({"error": {**kind, "kind": type(error).__name__, "message": message, "hint": hint}})
    note(f"error: {message} ({hint or more})" if hint or more else f"error: {message}")
    return code
