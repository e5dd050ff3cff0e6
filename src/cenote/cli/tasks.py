"""`tasks`: what is to be done, and what became of it."""

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from cenote.cli.help import Group
from cenote.cli.options import Common, command
from cenote.cli.output import note, print_json, print_table, printable, short

if TYPE_CHECKING:
    from cenote.model.page import Page
    from cenote.repositories.tasks_entity import Task

app = typer.Typer(cls=Group, help="What is to be done, and what became of it.")

Type = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Of this type.")]
TaskId = Annotated[UUID, typer.Argument(metavar="TASK", help="Its id.")]

_HEADERS = ["TASK", "TYPE", "STATUS", "PRIORITY", "ATTEMPTS", "RUN AT", "WORKER", "PAYLOAD"]


@command(app, "list")
def listed(
    common: Common,
    status: Annotated[
        str | None, typer.Option("--status", metavar="STATUS", help="In this state; failed: the dead letters.")
    ] = None,
    task_type: Type = None,
    where: Annotated[
        str | None, typer.Option("--where", metavar="FILTER", help='Of the payload: {"depth_m": {"gt": 30}}.')
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="So many at most.")] = 100,
    cursor: Annotated[
        str | None, typer.Option("--cursor", metavar="CURSOR", help="Go on where another page ended.")
    ] = None,
) -> int:
    """Print a page of tasks, the oldest first; exit code 1 when there are none."""
    from cenote.cli.values import parsed

    wanted = None if where is None else parsed(where, text=False)
    page: Page[Task] = _asked(
        common, "list", status=status, task_type=task_type, where=wanted, limit=limit, cursor=cursor
    )
    if common.json:
        print_json({"tasks": [_document(one) for one in page], "next": page.next})
    elif page.items:
        print_table(_HEADERS, map(_row, page))
        if page.next is not None:
            note(f"there are more: --cursor {page.next}")
    else:
        print("no tasks")
    return 0 if page.items else 1


@command(app, "show")
def show(common: Common, task: TaskId) -> int:
    """Print all about one task; exit code 1 when there is none."""
    _print(common, _asked(common, "get", task_id=task))
    return 0


@command(app, "add")
def add(
    common: Common,
    task_type: Annotated[str, typer.Argument(metavar="TYPE", help="Which workers it is for.")],
    payload: Annotated[str, typer.Argument(metavar="PAYLOAD", help="JSON, or else text.")] = "null",
    priority: Annotated[int, typer.Option("--priority", help="Higher ones come first.")] = 0,
    delay: Annotated[
        str | None, typer.Option("--delay", metavar="TIME", help="Not before so long from now: 90s, 15m.")
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option("--expires-in", metavar="TIME", help="Not after so long from now.")
    ] = None,
    attempts_max: Annotated[int | None, typer.Option("--attempts-max", help="Runs before it is given up.")] = None,
    dedupe_key: Annotated[
        str | None, typer.Option("--dedupe-key", metavar="KEY", help="Not beside a live task of the same key.")
    ] = None,
    task_id: Annotated[
        UUID | None, typer.Option("--id", metavar="UUID", help="Added once under this id, however often.")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="PAYLOAD is text, whatever it looks like.")] = False,
) -> int:
    """Add a task and print its id; PostgreSQL has it when this returns."""
    from cenote.cli.values import duration, parsed

    added: Task = _asked(
        common, "add", task_type=task_type, payload=parsed(payload, text=text), priority=priority,
        delay=None if delay is None else duration(delay), attempts_max=attempts_max, dedupe_key=dedupe_key,
        expires_in=None if expires_in is None else duration(expires_in), task_id=task_id,
    )  # fmt: skip
    if common.json:
        print_json(_document(added))
    else:
        print(added.id)
    return 0


@command(app, "cancel")
def cancel(common: Common, task: TaskId) -> int:
    """Have a task done by nobody any more."""
    _print(common, _asked(common, "cancel", task_id=task))
    return 0


@command(app, "replay")
def replay(common: Common, task: TaskId) -> int:
    """Begin a failed, cancelled or expired task anew."""
    _print(common, _asked(common, "replay", task_id=task))
    return 0


@command(app, "counts")
def counts(common: Common, task_type: Type = None) -> int:
    """Print how many tasks there are in each state."""
    found: dict[str, int] = _asked(common, "counts", task_type=task_type)
    if common.json:
        print_json(found)
    else:
        print_table(["STATUS", "TASKS"], found.items())
    return 0


def _asked(common: Common, verb: str, **given: Any) -> Any:
    from cenote.cli.reach import opened, wait

    async def ask() -> Any:
        async with opened(common.load(flush__enabled=False)) as (store, _):
            return await getattr(store.tasks, verb)(**given)

    return wait(ask())


def _print(common: Common, one: "Task") -> None:
    document = _document(one)
    if common.json:
        print_json(document)
        return
    for name, value in document.items():
        if value is not None:
            print(f"{name:13} {printable(value) if isinstance(value, str) else short(value, 2000)}")


def _row(one: "Task") -> list[object]:
    at = one.run_at.isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
    tries = f"{one.attempts}/{one.attempts_max}"
    return [one.id, one.type, one.status, one.priority, tries, at, one.worker or "", short(one.payload)]


def _document(one: "Task") -> dict[str, Any]:
    from cenote.cli.values import document

    plain = {
        name: getattr(one, name)
        for name in ("type", "status", "priority", "attempts", "attempts_max", "worker", "dedupe_key", "last_error")
    }
    times = {
        name: None if (at := getattr(one, name)) is None else at.isoformat()
        for name in ("created_at", "run_at", "expires_at", "lease_until", "finished_at")
    }
    values = {name: document(getattr(one, name))[0] for name in ("payload", "metadata", "result")}
    return {"id": str(one.id)} | plain | times | values
