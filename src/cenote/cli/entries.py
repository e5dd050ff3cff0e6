"""`get`, `put`, `delete`: one key of one agent."""

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cenote.cli.options import STATE, Common, command
from cenote.cli.output import note, print_json, printable

if TYPE_CHECKING:
    from datetime import timedelta

    from cenote.config import Config
    from cenote.engine.receipt import Receipt
    from cenote.model.entry import Entry, Version

app = typer.Typer()

Agent = Annotated[str, typer.Argument(metavar="AGENT", help="A name, or a UUID.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="1 to 512 characters.")]
IfVersion = Annotated[
    str | None,
    typer.Option("--if-version", metavar="VERSION", help="Only if this is its version; 0: only if it does not exist."),
]


@command(app, "get", panel=STATE)
def get(
    common: Common,
    agent: Agent,
    key: Key,
    default: Annotated[
        str | None, typer.Option("--default", metavar="VALUE", help="What to print when it does not exist.")
    ] = None,
) -> int:
    """Print a value.

    JSON values are printed as JSON; others (tuples, sets, bytes, dates …) as Python writes them. With --json the
    value comes with its version, times and tier; "tagged" says that the value is written in cenote's tagged form.
    """
    from cenote.cli.reach import wait
    from cenote.errors import NotFoundError

    try:
        entry = wait(_entry(common.load(flush__enabled=False), agent, key))
    except NotFoundError:
        if default is None or common.json:
            raise
        print(printable(default))
        return 0
    _show(entry, as_json=common.json)
    return 0


@command(app, "put", panel=STATE)
def put(
    common: Common,
    agent: Agent,
    key: Key,
    value: Annotated[
        str, typer.Argument(metavar="VALUE", help="JSON if it parses as JSON, else text; `-` reads standard input.")
    ],
    text: Annotated[bool, typer.Option("--text", help="VALUE is text, even if it looks like JSON.")] = False,
    ttl: Annotated[
        str | None, typer.Option("--ttl", metavar="TIME", help="How long it lives: 90, 90s, 15m, 12h, 7d.")
    ] = None,
    if_version: IfVersion = None,
    durability: Annotated[
        Literal["kv", "sql"], typer.Option("--durability", help="sql: fail unless PostgreSQL has committed it.")
    ] = "kv",
) -> int:
    """Write a value.

    Waits up to flush.drain_ms until PostgreSQL has it, too, flushing it itself when no other process does; if that
    takes longer, the write is safe in KV and the command succeeds, unless --durability sql asks for more.
    """
    from cenote.cli.reach import wait
    from cenote.cli.values import duration, parsed

    content = parsed(sys.stdin.read() if value == "-" else value, text=text)
    lifetime = None if ttl is None else duration(ttl)
    config = common.load()
    receipt = wait(_put(config, agent, key, content, ttl=lifetime, if_version=if_version, durability=durability))
    _acknowledge(common, agent, receipt)
    return 0


@command(app, "delete", panel=STATE)
def delete(common: Common, agent: Agent, key: Key, if_version: IfVersion = None) -> int:
    """Delete a key; deleting one that does not exist is fine. Waits for PostgreSQL as put does."""
    from cenote.cli.reach import wait

    receipt = wait(_delete(common.load(), agent, key, if_version))
    _acknowledge(common, agent, receipt)
    return 0


async def _entry(config: "Config", agent: str, key: str) -> "Entry":
    from cenote.cli.reach import opened
    from cenote.errors import NotFoundError

    async with opened(config) as (store, _):
        try:
            return await store.agent(agent).entry(key)
        except NotFoundError as error:
            raise NotFoundError(f"{agent!r} has no {key!r}", key=key, hint=error.hint) from error


async def _put(
    config: "Config",
    agent: str,
    key: str,
    value: Any,
    *,
    ttl: "timedelta | None",
    if_version: str | None,
    durability: Literal["kv", "sql"],
) -> "Receipt":
    from cenote.cli.reach import opened

    only_if = condition(if_version)
    async with opened(_without_drain(config)) as (store, _):
        receipt = await store.agent(agent).put(key, value, ttl=ttl, if_version=only_if, durability=durability)
        await _settle(receipt, config)
        return receipt


async def _delete(config: "Config", agent: str, key: str, if_version: str | None) -> "Receipt":
    from cenote.cli.reach import opened

    only_if = condition(if_version)
    async with opened(_without_drain(config)) as (store, _):
        receipt = await store.agent(agent).delete(key, if_version=only_if)
        await _settle(receipt, config)
        return receipt


def _without_drain(config: "Config") -> "Config":
    """Closing need not wait: the command has waited for its own receipt by then."""
    from cenote.config import load

    return load(config, overrides={"flush__drain_ms": 0})


async def _settle(receipt: "Receipt", config: "Config") -> None:
    """Give PostgreSQL the time that closing a store would give it."""
    from cenote.errors import NotDurableError, OutcomeUnknownError

    if not config.flush.enabled or not config.flush.drain_ms:
        return
    try:
        await receipt.durable(config.flush.drain_ms / 1000)
    except (NotDurableError, OutcomeUnknownError):
        note(f"note: PostgreSQL has not taken it within {config.flush.drain_ms} ms; it is safe in KV and will follow")


def condition(text: str | None) -> "Version | int | None":
    from cenote.model.entry import Version

    return None if text is None else 0 if text == "0" else Version.parse(text)


def _acknowledge(common: Common, agent: str, receipt: "Receipt") -> None:
    version = str(receipt.version)
    if common.json:
        print_json({"agent": agent, "key": receipt.key, "version": version, "durability": receipt.durability})
    else:
        print(f"{printable(agent)} {printable(receipt.key)} version {version} durability {receipt.durability}")


def _show(entry: "Entry", *, as_json: bool) -> None:
    from cenote.cli.values import document, readable

    if not as_json:
        print(readable(entry.value))
        return
    value, tagged = document(entry.value)
    print_json(
        {
            "agent": entry.agent,
            "key": entry.key,
            "value": value,
            "tagged": tagged,
            "version": str(entry.version),
            "written_at": entry.written_at,
            "expires_at": entry.expires_at,
            "tier": entry.tier.value,
            "writer": entry.writer,
        }
    )
