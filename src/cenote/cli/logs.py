"""What a serving process logs, to stderr: lines for people, or one JSON object a line for a collector of logs.

What is logged names agents, keys and kinds of errors, never a value or a secret. Of an exception JSON therefore tells
the classes and the places it came through; the words of foreign errors may quote what they stumbled over.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from traceback import walk_tb


class LogFormat(StrEnum):
    """How the lines of a log are written."""

    TEXT = "text"
    JSON = "json"


class JsonLines(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, event, namespace, pid; of an exception `errors`,
    from the last to its first cause, and `stack`, from the outermost place to the innermost.
    """

    def __init__(self, namespace: str) -> None:
        super().__init__()
        self._namespace = namespace

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": time.replace("+00:00", "Z"), "level": record.levelname.lower(), "logger": record.name,
            "event": record.getMessage(), "namespace": self._namespace, "pid": record.process,
        }  # fmt: skip
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["errors"] = [type(one).__name__ for one in _chain(error)]
            frames = walk_tb(error.__traceback__)
            line["stack"] = [f"{frame.f_globals.get('__name__')}:{at} {frame.f_code.co_name}" for frame, at in frames]
        return json.dumps(line)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


@contextmanager
def log_to_stderr(form: LogFormat, namespace: str) -> Iterator[None]:
    """What happens, with its time, for whoever watches or reads the log later. As JSON what other libraries log, and
    Python's warnings, too: a line that is no JSON would be lost."""
    ours, everything = logging.getLogger("cenote"), form is LogFormat.JSON
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines(namespace) if everything else text)
    owner = logging.getLogger() if everything else ours
    before = ours.level, ours.propagate
    owner.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = everything
    logging.captureWarnings(everything)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        owner.removeHandler(handler)
        ours.setLevel(before[0])
        ours.propagate = before[1]
