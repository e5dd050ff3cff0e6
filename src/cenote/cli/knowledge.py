"""`knowledge`: what is known."""

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from cenote.cli.help import Group
from cenote.cli.options import Common, command
from cenote.cli.output import note, print_json, print_table, short

if TYPE_CHECKING:
    from cenote.repositories.knowledge_entity import Fact

app = typer.Typer(cls=Group, help="Facts: what is known, found by words, by meaning and by filters.")

Namespace = Annotated[str, typer.Option("--in", metavar="NAME", help="Of this namespace.")]
Where = Annotated[
    str | None, typer.Option("--where", metavar="JSON", help='A filter on metadata, e.g. {"depth_m": {"gt": 30}}.')
]


@command(app, "add")
def add(
    common: Common,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What is known.")],
    metadata: Annotated[
        str | None, typer.Option("--metadata", metavar="JSON", help="An object: what is said about it.")
    ] = None,
    within: Namespace = "default",
    fact_id: Annotated[UUID | None, typer.Option("--id", metavar="UUID", help="Added once under this id.")] = None,
) -> int:
    """Add a fact; PostgreSQL has it when this returns."""
    about = _object(metadata, "--metadata")
    added = _done(common, "add", text, metadata=about, namespace=within, fact_id=fact_id)
    if common.json:
        print_json(_document(added))
    else:
        print(added.id)
    return 0


@command(app, "search")
def search(
    common: Common,
    query: Annotated[str, typer.Argument(metavar="TEXT", help='Words, "in this order", or, -without; or a question.')],
    within: Namespace = "default",
    where: Where = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="So many at most.")] = 10,
    mode: Annotated[str, typer.Option("--mode", metavar="MODE", help="hybrid, vector or text.")] = "hybrid",
) -> int:
    """Print the facts that fit best, the best first; exit code 1 when there are none."""
    found = _done(common, "search", query, limit=limit, where=_object(where, "--where"), namespace=within, mode=mode)
    if common.json:
        print_json({"found": [{"score": one.score, "fact": _document(one.fact)} for one in found]})
    elif found:
        rows = [[f"{one.score:.4f}", str(one.fact.id), short(one.fact.text)] for one in found]
        print_table(["SCORE", "ID", "TEXT"], rows)
    else:
        print("no facts")
    return 0 if found else 1


@command(app, "list")
def listed(
    common: Common,
    within: Namespace = "default",
    where: Where = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="So many at most.")] = 100,
    cursor: Annotated[
        str | None, typer.Option("--cursor", metavar="CURSOR", help="Go on where another page ended.")
    ] = None,
) -> int:
    """Print a page of facts; exit code 1 when there are none."""
    page = _done(common, "list", limit=limit, cursor=cursor, where=_object(where, "--where"), namespace=within)
    if common.json:
        print_json({"facts": [_document(one) for one in page], "next": page.next})
    elif page.items:
        print_table(["ID", "TEXT", "METADATA"], [[str(one.id), short(one.text), short(one.metadata)] for one in page])
        if page.next is not None:
            note(f"there are more: --cursor {page.next}")
    else:
        print("no facts")
    return 0 if page.items else 1


@command(app, "forget")
def forget(
    common: Common,
    within: Namespace = "default",
    where: Where = None,
    everything: Annotated[bool, typer.Option("--all", help="All facts of the namespace.")] = False,
) -> int:
    """Remove the facts that fit a filter, and say how many; those that were superseded as well."""
    if (where is None) != everything:
        raise typer.BadParameter("say which: --where or --all")
    count = _done(common, "forget", where=_object(where, "--where"), namespace=within)
    if common.json:
        print_json({"forgotten": count})
    else:
        print(f"{count} forgotten")
    return 0


@command(app, "index")
def index(common: Common, within: Namespace = "default") -> int:
    """Print by what a namespace is searched: by pgvector's index, or exactly; and why."""
    state = _done(common, "vector_index", within)
    if common.json:
        print_json(
            {"back_end": state.back_end, "why": state.why, "embeddings": state.embeddings, "indexed": state.indexed}
        )
    else:
        print(f"{state.back_end}: {state.why} ({state.indexed} of {state.embeddings} embeddings are in an index)")
    return 0


def _done(common: Common, verb: str, *given: Any, **options: Any) -> Any:
    from cenote.cli.reach import opened, wait

    async def work() -> Any:
        async with opened(common.load(flush__enabled=False)) as (store, _):
            return await getattr(store.knowledge, verb)(*given, **options)

    return wait(work())


def _object(text: str | None, option: str) -> dict[str, Any] | None:
    import json

    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{option}: a JSON object is needed")
    return found


def _document(one: "Fact") -> dict[str, Any]:
    from cenote.cli.values import document

    return {
        "id": str(one.id), "text": document(one.text)[0], "namespace": document(one.namespace)[0],
        "metadata": document(one.metadata)[0], "created_at": one.created_at.isoformat(),
        "superseded_by": None if one.superseded_by is None else str(one.superseded_by), "embedded": one.embedded,
        "version": one.version,
    }  # fmt: skip
