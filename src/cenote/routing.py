"""Which kind of data lives where: one table, categories and their routes (specification 1.1 and 1.2).

A category of your own is one call of `register`; `store.data(category)` goes the way that the table says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, Literal

from cenote.errors import SetupError
from cenote.model.entry import Tier

KV: Final = (Tier.DISTRIBUTED_KV,)
FLOW: Final = (Tier.DISTRIBUTED_KV, Tier.RELATIONAL_DB)
SQL: Final = (Tier.RELATIONAL_DB,)
VECTOR: Final = (Tier.VECTOR_STORE, Tier.RELATIONAL_DB)

_ROADS: Final = (KV, FLOW, SQL, VECTOR)
_NAME_CHARS_MAX: Final = 100


class Category(Enum):
    """The five kinds of data that the specification names."""

    SESSION_DATA = "SESSION_DATA"
    """What a user does now: temporary."""
    AGENT_STATE = "AGENT_STATE"
    """What agents are doing: working state."""
    TASK_INFO = "TASK_INFO"
    """What is to be done."""
    MESSAGE_LOG = "MESSAGE_LOG"
    """What was said."""
    KNOWLEDGE_BASE = "KNOWLEDGE_BASE"
    """What is known."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a category's data lives.

    Attributes:
        tiers: in the order in which they take a write: `(DISTRIBUTED_KV,)` dies of age; `(DISTRIBUTED_KV,
            RELATIONAL_DB)` is the write-behind flow; `(RELATIONAL_DB,)` a table; `(VECTOR_STORE, RELATIONAL_DB)`
            knowledge.
        ttl_s: how long a value lives, in seconds; None: as long as the setting of its kind says, or for ever.
        resolver: the rule for two writes that meet under one key, by its name in `cenote.conflict.RESOLVERS`; None:
            `state.resolver`. Only for the flow: nothing else has two writes that meet.
        durability: "sql" returns after PostgreSQL's commit; "kv" after JetStream's acknowledgement.
    """

    tiers: tuple[Tier, ...]
    ttl_s: float | None = None
    resolver: str | None = None
    durability: Literal["kv", "sql"] = "kv"

    @property
    def primary(self) -> Tier:
        """The tier that takes the write (the specification's `selectStorage`)."""
        return self.tiers[0]


ROUTES: dict[str, Route] = {
    "SESSION_DATA": Route(KV),
    "AGENT_STATE": Route(FLOW),
    "TASK_INFO": Route(SQL, durability="sql"),
    "MESSAGE_LOG": Route(SQL, durability="sql"),
    "KNOWLEDGE_BASE": Route(VECTOR, durability="sql"),
}
"""The routes by category; `register` adds to it."""

_OWN_TABLES: Final = {"TASK_INFO": (SQL,), "MESSAGE_LOG": (SQL,), "KNOWLEDGE_BASE": (VECTOR, SQL)}


def register(category: str, route: Route) -> None:
    """Add a category of your own, before a store is opened.

    Raises:
        SetupError: it has no name, is one of the five, or its route cannot be gone: without a table of its own it
            lives in KV, or in the flow.
    """
    if not 1 <= len(category) <= _NAME_CHARS_MAX or category in Category.__members__:
        raise SetupError(f"category: {category!r} is taken, or not 1 to {_NAME_CHARS_MAX} characters")
    _check(category, route)
    ROUTES[category] = route


def routes(overrides: Mapping[str, Mapping[str, Any]]) -> dict[str, Route]:
    """The table under overrides as settings give them. Raises SetupError, naming category and field."""
    table = dict(ROUTES)
    for category, fields in overrides.items():
        if category not in table:
            raise SetupError(f"routes: there is no category {category!r}", hint=f"there are {', '.join(table)}")
        table[category] = _check(category, replace(table[category], **_fields(category, fields)))
    return table


def _fields(category: str, given: Mapping[str, Any]) -> dict[str, Any]:
    where = f"routes: {category}"
    unknown = set(given) - set(Route.__dataclass_fields__)
    if unknown:
        raise SetupError(f"{where}: there is no {sorted(unknown)[0]!r}")
    fields = dict(given)
    if "tiers" in fields:
        try:
            fields["tiers"] = tuple(Tier[name] for name in fields["tiers"])
        except (KeyError, TypeError):
            raise SetupError(f"{where}: tiers must be of {', '.join(Tier.__members__)}") from None
    return fields


def _check(category: str, route: Route) -> Route:
    where = f"category {category}"
    if route.tiers not in _ROADS:
        raise SetupError(f"{where}: no road leads over {[tier.name for tier in route.tiers]}")
    if route.tiers in (SQL, VECTOR) and route.tiers not in _OWN_TABLES.get(category, ()):
        raise SetupError(
            f"{where}: it has no such table", hint="route it by DISTRIBUTED_KV, alone or with RELATIONAL_DB"
        )
    if route.durability not in ("kv", "sql"):
        raise SetupError(f'{where}: durability is "kv" or "sql", not {route.durability!r}')
    if (route.durability == "sql") is not (route.tiers in (SQL, VECTOR)) and route.tiers != FLOW:
        raise SetupError(f'{where}: its tiers allow only durability "{"kv" if route.tiers == KV else "sql"}"')
    if route.ttl_s is not None and not (isinstance(route.ttl_s, int | float) and route.ttl_s > 0):
        raise SetupError(f"{where}: ttl_s is a number above 0, not {route.ttl_s!r}")
    if route.ttl_s is not None and route.tiers in (SQL, VECTOR):
        raise SetupError(
            f"{where}: a table keeps things for as long as the settings of its kind say; it takes no ttl_s"
        )
    if route.resolver is not None and route.tiers != FLOW:
        raise SetupError(f"{where}: only the flow has a resolver, for only there can two writes meet")
    return route
