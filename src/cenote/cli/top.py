"""`top`: what `status` tells, again each second, on a screen that stays. It looks, and starts nothing."""

import shutil
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cenote.cli.options import SERVERS, Common, command
from cenote.cli.output import json_text

if TYPE_CHECKING:
    import asyncio

    from rich.text import Text

    from cenote.cli.reach import Reach
    from cenote.config import Config

app = typer.Typer()

_TICK_S = 1.0
_LOOK_S = 5.0  # a look at servers that stand still ends, and the screen says so
_EXITS = {"healthy": 0, "degraded": 1, "stopped": 1}


@command(app, "top", panel=SERVERS)
def top(common: Common, once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False) -> int:
    """Show the servers, the flow from KV to SQL and what is wrong, again each second; q ends it.

    With --json one document a line. With --once the exit code is that of `status`.
    """
    from cenote.cli.reach import wait

    config = common.load(flush__enabled=False)
    try:
        verdict = wait(_show(config, once=once, as_json=common.json))
    except KeyboardInterrupt:
        return 0
    return _EXITS.get(verdict, 2) if once else 0


async def _show(config: "Config", *, once: bool, as_json: bool) -> str:
    verdict = ""
    screen = sys.stdout.isatty() and not once and not as_json
    with _screen(screen) as (show, leaving):
        async with aclosing(_looks(config)) as looks:
            async for found in looks:
                verdict = found["verdict"]
                if as_json:
                    print(json_text(found, indent=None), flush=True)
                else:
                    show(found)
                if once or await _left(leaving):
                    break
    return verdict


async def _left(leaving: "asyncio.Event") -> bool:
    """Whether somebody wants to go, within one tick."""
    import asyncio

    try:
        async with asyncio.timeout(_TICK_S):
            await leaving.wait()
    except TimeoutError:
        return False
    return True


async def _looks(config: "Config") -> AsyncGenerator[dict[str, Any], None]:
    """One look after the other through one open store, which is opened as soon as there are servers to open it on."""
    from cenote.cli.looking import nothing, stopped
    from cenote.cli.reach import embedded_names, opened, running
    from cenote.errors import CenoteError

    async with AsyncExitStack() as stack:
        reach: Reach | None = None
        while True:
            if reach is None and embedded_names(config) and running(config) is None:
                yield stopped(config)
                continue
            try:
                if reach is None:
                    reach = await stack.enter_async_context(opened(config))
                found = await _look(config, reach)
            except CenoteError as error:
                found = nothing(config, "unhealthy", str(error.args[0]), error.hint)
            yield found


async def _look(config: "Config", reach: "Reach") -> dict[str, Any]:
    import asyncio

    from cenote.cli.looking import nothing, seen

    try:
        async with asyncio.timeout(_LOOK_S):
            return await seen(config, reach)
    except TimeoutError:
        return nothing(config, "unhealthy", f"the servers did not answer within {_LOOK_S:g} s", "see: cenote doctor")


@contextmanager
def _screen(wanted: bool) -> "Iterator[tuple[Any, asyncio.Event]]":
    """How a look is shown, and the event that a press of q sets; without a terminal plain lines."""
    import asyncio

    leaving = asyncio.Event()
    if not wanted:
        yield (lambda found: print(frame(found).plain, flush=True)), leaving
        return
    from rich.console import Console
    from rich.live import Live

    with _keys(leaving), Live(console=Console(), screen=True, auto_refresh=False) as live:
        yield (lambda found: live.update(frame(found, shutil.get_terminal_size()), refresh=True)), leaving


@contextmanager
def _keys(leaving: "asyncio.Event") -> Iterator[None]:
    """Hear single keys, where stdin is a terminal."""
    import asyncio

    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    keyboard, loop = sys.stdin.fileno(), asyncio.get_running_loop()

    def pressed() -> None:
        if sys.stdin.read(1) in ("q", "Q", ""):
            leaving.set()

    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, pressed)
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def frame(found: dict[str, Any], size: tuple[int, int] | None = None) -> "Text":
    """One look as lines; with a size (columns, rows) none is longer and there are no more: what is wrong comes first.

    Checks that found nothing wrong are left out.
    """
    from rich.text import Text

    from cenote.cli.status import lines

    wrong = [check for check in found["checks"] if check["verdict"] != "healthy"]
    told = [Text.from_ansi(f"{name:10}{text}") for name, text in lines(found | {"checks": wrong})]
    if size is not None:
        told = told[: size[1] - 1]
        for line in told:
            line.truncate(size[0] - 1, overflow="ellipsis")
    return Text("\n").join(told)
