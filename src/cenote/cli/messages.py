"""`messages`: what agents said to each other."""

from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from cenote.cli.help import Group
from cenote.cli.options import Common, command
from cenote.cli.output import note, print_json, print_table, printable, short

if TYPE_CHECKING:
    from cenote.config import Config
    from cenote.model.page import Page
    from cenote.repositories.messages_entity import Message

app = typer.Typer(cls=Group, help="What agents said to each other, in the order in which it was sent.")

Conversation = Annotated[str | None, typer.Option("--conversation", metavar="NAME", help="Of this conversation.")]
To = Annotated[str | None, typer.Option("--to", metavar="NAME", help="To this recipient.")]
Sender = Annotated[str | None, typer.Option("--from", metavar="NAME", help="From this sender.")]
Cursor = Annotated[str | None, typer.Option("--cursor", metavar="CURSOR", help="Go on where another page ended.")]

_HEADERS = ["AT", "FROM", "TO", "CONVERSATION", "BODY"]


@command(app, "list")
def listed(
    common: Common,
    conversation: Conversation = None,
    to: To = None,
    sender: Sender = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="So many at most.")] = 100,
    cursor: Cursor = None,
    newest: Annotated[bool, typer.Option("--newest", help="The newest first.")] = False,
) -> int:
    """Print a page of messages, the oldest first; exit code 1 when there are none."""
    from cenote.cli.reach import wait

    which = {"conversation": conversation, "to": to, "sender": sender}
    return _print(common, wait(_page(common, "read", limit=limit, cursor=cursor, newest_first=newest, **which)))


@command(app, "search")
def search(
    common: Common,
    text: Annotated[str, typer.Argument(metavar="TEXT", help='Words, "in this order", or, -without.')],
    conversation: Conversation = None,
    to: To = None,
    sender: Sender = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="So many at most.")] = 20,
    cursor: Cursor = None,
) -> int:
    """Print messages with these words, the newest first; exit code 1 when there are none."""
    from cenote.cli.reach import wait

    which = {"conversation": conversation, "to": to, "sender": sender}
    return _print(common, wait(_page(common, "search", text=text, limit=limit, cursor=cursor, **which)))


@command(app, "send")
def send(
    common: Common,
    body: Annotated[str, typer.Argument(metavar="BODY", help="JSON, or else text.")],
    sender: Annotated[str, typer.Option("--from", metavar="NAME", help="Who says it.")],
    to: Annotated[str, typer.Option("--to", metavar="NAME", help="To whom.")],
    conversation: Annotated[
        str | None, typer.Option("--conversation", metavar="NAME", help="What it belongs to.")
    ] = None,
    message_id: Annotated[
        UUID | None, typer.Option("--id", metavar="UUID", help="Sent once under this id, however often.")
    ] = None,
    reply_to: Annotated[UUID | None, typer.Option("--reply-to", metavar="UUID", help="What it answers.")] = None,
    text: Annotated[bool, typer.Option("--text", help="BODY is text, whatever it looks like.")] = False,
) -> int:
    """Send a message; PostgreSQL has it when this returns."""
    from cenote.cli.reach import wait
    from cenote.cli.values import parsed

    given = {"sender": sender, "to": to, "conversation": conversation, "message_id": message_id, "reply_to": reply_to}
    sent = wait(_send(common.load(flush__enabled=False), parsed(body, text=text), given))
    if common.json:
        print_json(_document(sent))
    else:
        print(sent.id)
    return 0


@command(app, "tail")
def tail(
    common: Common,
    conversation: Conversation = None,
    to: To = None,
    sender: Sender = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="POSITION", help="0: all that is kept; a position: what came after."),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="End after so many messages.")] = None,
) -> int:
    """Print messages as they are sent, until Ctrl-C. With --json one document a line."""
    from cenote.cli.reach import wait

    which = {"conversation": conversation, "to": to, "sender": sender}
    try:
        wait(_tail(common, which, 0 if since == "0" else since, count))
    except KeyboardInterrupt:
        return 0
    return 0


async def _page(common: Common, verb: str, **given: Any) -> "Page[Message]":
    from cenote.cli.reach import opened

    async with opened(common.load(flush__enabled=False)) as (store, _):
        page: Page[Message] = await getattr(store.messages, verb)(**given)
        return page


async def _send(config: "Config", body: object, given: dict[str, Any]) -> "Message":
    from cenote.cli.reach import opened

    async with opened(config) as (store, _):
        return await store.messages.send(body, **given)


async def _tail(common: Common, which: dict[str, str | None], since: str | int | None, count: int | None) -> None:
    from cenote.cli.reach import opened

    async with (
        opened(common.load(flush__enabled=False)) as (store, _),
        aclosing(store.messages.subscribe(since=since, **which)) as messages,
    ):
        async for one in messages:
            if common.json:
                print_json(_document(one), indent=None)
            else:
                print("  ".join(printable(cell) for cell in _row(one)), flush=True)
            if count is not None:
                count -= 1
                if count == 0:
                    return


def _print(common: Common, page: "Page[Message]") -> int:
    if common.json:
        print_json({"messages": [_document(one) for one in page], "next": page.next})
    elif page.items:
        print_table(_HEADERS, map(_row, page))
        if page.next is not None:
            note(f"there are more: --cursor {page.next}")
    else:
        print("no messages")
    return 0 if page.items else 1


def _row(one: "Message") -> list[object]:
    at = "" if one.sent_at is None else one.sent_at.isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
    return [at, one.sender, one.to, one.conversation or "", short(one.body)]


def _document(one: "Message") -> dict[str, Any]:
    from cenote.cli.values import document

    plain = {name: getattr(one, name) for name in ("sender", "to", "conversation", "position")}
    ids = {"id": str(one.id), "reply_to": None if one.reply_to is None else str(one.reply_to)}
    at = None if one.sent_at is None else one.sent_at.isoformat()
    return ids | plain | {"sent_at": at, "body": document(one.body)[0], "metadata": document(one.metadata)[0]}
