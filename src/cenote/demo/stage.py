"""The frame around a run: arguments in, servers up, verdict out, logs kept aside, nothing left behind."""

import asyncio
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from cenote.demo import survey
from cenote.demo.audience import embedder
from cenote.demo.conductor import Conductor, StuckError
from cenote.demo.pool import open_store
from cenote.demo.report import Figures, Show, finish
from cenote.demo.swarm import WorkerFailedError
from cenote.embedded.state import TEMPORARY
from cenote.errors import CenoteError

_MODULES = 180
_MODULES_MIN = 20  # fewer are over before the last fault
_WHOLE_RUN_S = 3600.0

_LOG = "cenote.log"

OK, FAILED, NO_START, USAGE, INTERRUPTED = 0, 1, 2, 64, 130


def play(*, modules: int | None, workers: int, faults: bool, as_json: bool, data_dir: str | None) -> int:
    """See `cenote.demo.run`."""
    console, errors = Console(), Console(stderr=True)
    modules = _MODULES if modules is None else modules
    if modules < _MODULES_MIN or not 1 <= workers <= 64:
        errors.print(f"cenote demo: --modules must be at least {_MODULES_MIN}, --workers 1 to 64", markup=False)
        return USAGE
    figures = Figures(len(survey.modules(modules)), workers, faults, embedder=embedder(), data_dir=data_dir)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cenote-demo-") as name:
        folder = Path(name)
        try:
            with _logged(folder / _LOG):
                asyncio.run(_conduct(figures, Show(console, quiet=as_json), folder))
        except NotStartedError as error:
            errors.print(f"cenote demo cannot start: {error}", markup=False, style="red")
            return NO_START
        except (CenoteError, StuckError, WorkerFailedError) as error:
            errors.print(f"cenote demo failed: {error}\n\n{_last_words(folder)}", markup=False)
            return FAILED
        except KeyboardInterrupt:
            errors.print("cenote demo: interrupted; servers and workers are stopped")
            return INTERRUPTED
    figures.seconds = round(time.monotonic() - began, 1)
    good = figures.judge()
    finish(console, figures, as_json=as_json)
    return OK if good else FAILED


class NotStartedError(Exception):
    """The servers could not be started; the message says why and what to do."""


async def _conduct(figures: Figures, show: Show, folder: Path) -> None:
    with show.running():
        show.say("NATS and PostgreSQL start …")
        try:
            folder_of_data = figures.data_dir or TEMPORARY
            store = await open_store(folder_of_data, embedder=figures.embedder, health__window_s=_WHOLE_RUN_S)
        except (CenoteError, OSError) as error:
            raise NotStartedError(str(error)) from error
        async with store:
            await Conductor(store, figures, show, folder).conduct()


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Keep what the libraries log out of the picture, but at hand."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("cenote", "nats", "asyncio")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        handler.close()


def _last_words(folder: Path) -> str:
    """The ends of the logs, ours and the workers', which are about to be removed."""
    texts = {path.name: path.read_text(errors="replace") for path in sorted(folder.glob("*.log"))}
    return "\n".join(f"--- {name}\n{text[-1500:]}" for name, text in texts.items() if text)
