"""What a namespace calls its buckets, subjects and schemas: one table, so that no two rooms can disagree.

The namespace `default` adds no prefix; any other, say `ns`, gives `ns_AGENT_STATE`, `ns_agents`, ...
"""

import re
from dataclasses import dataclass
from typing import Final

from cenote import limits
from cenote.errors import SetupError

DEFAULT: Final = "default"
AGENT_STATE: Final = "AGENT_STATE"
SESSION_DATA: Final = "SESSION_DATA"
QUERY_CACHE: Final = "QUERY_CACHE"
ANSWERS: Final = "ANSWERS"
COUNTERS: Final = "COUNTERS"

_LEGAL: Final = re.compile(rf"[A-Za-z0-9_]{{1,{limits.NAMESPACE_CHARS_MAX}}}")


def check_namespace(namespace: str) -> str:
    """The namespace itself; SetupError unless it is 1 to 32 letters, digits and `_`, and no `pg`."""
    if not _LEGAL.fullmatch(namespace):
        raise SetupError(
            f"namespace: {namespace!r} is not 1 to {limits.NAMESPACE_CHARS_MAX} ASCII letters, digits and '_'"
        )
    if f"{namespace}_".startswith("pg_"):
        raise SetupError(f"namespace: {namespace!r} would give schemas in 'pg_', which PostgreSQL reserves")
    return namespace


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one namespace."""

    namespace: str = DEFAULT

    def __post_init__(self) -> None:
        check_namespace(self.namespace)

    @property
    def prefix(self) -> str:
        """What stands before every name: empty for the default namespace, else `ns_`."""
        return "" if self.namespace == DEFAULT else f"{self.namespace}_"

    def bucket(self, name: str) -> str:
        """The KV bucket, e.g. `ns_AGENT_STATE`."""
        return self.prefix + name

    def stream(self, name: str) -> str:
        """The bucket's stream, e.g. `KV_ns_AGENT_STATE`."""
        return f"KV_{self.prefix}{name}"

    def subject(self, name: str) -> str:
        """What an entry's subject begins with, e.g. `$KV.ns_AGENT_STATE.`; agent and key tokens follow."""
        return f"$KV.{self.prefix}{name}."

    def republished(self, name: str) -> str:
        """What a republished entry's subject begins with, e.g. `kvw.ns_AGENT_STATE.`."""
        return f"kvw.{self.prefix}{name}."

    def schema(self, name: str) -> str:
        """The PostgreSQL schema, ready to stand in SQL: `agents`, or `"ns_agents"` with its quotes."""
        return f'"{self.prefix}{name}"' if self.prefix else name

    def schema_name(self, name: str) -> str:
        """The same without quotes, as the catalogues hold it."""
        return self.prefix + name
