"""Agents and keys as each tier writes them: injective, reversible, and unable to carry a wildcard (I14).

Three spellings of one identity, and bijections between them (flow rule 11):

- the text that the user gave;
- a NATS subject token: UTF-8 bytes outside `[A-Za-z0-9_/-]` become `=XX`. NATS refuses or misreads `:`, `*`,
  `>`, blanks, and empty tokens, so none of them may ever reach a subject. A key keeps its inner dots, so that
  `plan.step.1` can be filtered by `plan.>`; an agent is always one token;
- what PostgreSQL stores: an agent as a UUID, a key as text, where NUL and lone surrogates are escaped, for
  its text can carry neither.
"""

import re
from hashlib import blake2b
from typing import Final, NamedTuple
from uuid import RFC_4122, UUID

from cenote import limits
from cenote.errors import CodecError, RejectedError

RESERVED: Final = "="
"""Our own tokens begin with it, followed by no pair of hex digits (`=lease`): no agent encodes to one."""

_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_/-]+(?:\.[A-Za-z0-9_/-]+)*")
_PLAIN_AGENT: Final = re.compile(r"[A-Za-z0-9_/-]+")
_OTHER_KEY_BYTE: Final = re.compile(rb"(?<![^.])\.|\.(?![^.])|[^A-Za-z0-9_/.-]")  # a dot stays between non-dots
_OTHER_AGENT_BYTE: Final = re.compile(rb"[^A-Za-z0-9_/-]")
_ESCAPED: Final = re.compile(rb"=([0-9A-F]{2})")
_CANONICAL_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NOT_IN_SQL: Final = re.compile("[\x00\x1a\ud800-\udfff]")
_ESCAPED_IN_SQL: Final = re.compile("\x1a([0-9A-F]{4})")
_NAME_DOMAIN: Final = b"cenote.agent"  # keeps our hash apart from any other use of BLAKE2b on the same name


class AgentRef(NamedTuple):
    """One agent: the text the user knows it by, its subject token, and its id in SQL."""

    text: str
    token: str
    id: UUID


def agent_ref(agent_id: str | UUID) -> AgentRef:
    """Identify an agent by a UUID or its canonical lower-case text, else by a name of 1 to 200 characters.

    A name's id is a UUIDv8 hashed from it, so a v8 that the user gives is a name, too: no two of them meet.

    Raises:
        RejectedError: names the limit.
    """
    if isinstance(agent_id, UUID):
        agent_id = str(agent_id)
    text = _checked(agent_id, "agent id", limits.AGENT_CHARS_MAX)
    token = text if _PLAIN_AGENT.fullmatch(text) else _escape(text, _OTHER_AGENT_BYTE)
    _check_token(token, "agent id", text)
    return AgentRef(text, token, _own_id(text) or _hashed_id(text))


def agent_named(agent_id: UUID, name: str | None) -> AgentRef:
    """The agent of a row, and its name there (`from_sql_key`'s spelling), if it is registered."""
    return agent_ref(str(agent_id) if name is None else from_sql_key(name))


def encode_key(key: str) -> str:
    """The key's subject tokens; RejectedError unless it is 1 to 512 characters and not too long encoded."""
    text = _checked(key, "key", limits.KEY_CHARS_MAX)
    if _PLAIN_KEY.fullmatch(text):
        return text
    return _check_token(_escape(text, _OTHER_KEY_BYTE), "key", text)


def encode_prefix(prefix: str) -> str:
    """Text with which the tokens of each key that begins with `prefix` begin, to narrow a subject filter.

    How a trailing dot is written depends on what follows it, so it is left out: callers still filter exactly.
    """
    if prefix == "":
        return ""
    if type(prefix) is not str:
        raise RejectedError(f"prefix: a string is needed, not {type(prefix).__name__}")
    return _escape(prefix.rstrip("."), _OTHER_KEY_BYTE)


def decode_token(token: str) -> str:
    """The key behind subject tokens; CodecError when this codec cannot have made them."""
    if len(token) <= limits.KEY_CHARS_MAX and _PLAIN_KEY.fullmatch(token):
        return token  # its own image: nothing to take apart, and nothing to check against
    text = _unescape(token)
    if not 0 < len(text) <= limits.KEY_CHARS_MAX or encode_key(text) != token:
        raise CodecError(f"subject token {token!r} is no encoded key")
    return text


def decode_agent(token: str) -> AgentRef:
    """The agent behind a subject token; CodecError when this codec cannot have made it, as a reserved one."""
    text = token if _PLAIN_AGENT.fullmatch(token) else _unescape(token)
    if 0 < len(text) <= limits.AGENT_CHARS_MAX:
        agent = agent_ref(text)
        if agent.token == token:
            return agent
    raise CodecError(f"subject token {token!r} is no encoded agent")


def subject(prefix: str, agent: AgentRef, key: str) -> str:
    """The whole subject of an entry; `prefix` is `Names.subject(bucket)`. RejectedError above 1,024 bytes."""
    return check_subject(f"{prefix}{agent.token}.{encode_key(key)}")


def check_subject(subject: str) -> str:
    """The whole subject itself; RejectedError above 1,024 bytes."""
    if len(subject) > limits.SUBJECT_BYTES_MAX:
        raise RejectedError(
            f"key: together, agent and key encode to a subject of {len(subject)} bytes; "
            f"the limit is {limits.SUBJECT_BYTES_MAX}"
        )
    return subject


def sql_key(key: str) -> str:
    """The key as PostgreSQL's text can hold it, character by character, so that prefixes stay prefixes."""
    return _NOT_IN_SQL.sub(_escape_for_sql, key)


def from_sql_key(text: str) -> str:
    """The key behind `sql_key`'s text."""
    return _ESCAPED_IN_SQL.sub(_unescape_from_sql, text) if "\x1a" in text else text


def _checked(text: object, what: str, chars_max: int) -> str:
    if not isinstance(text, str):
        raise RejectedError(f"{what}: a string is needed, not {type(text).__name__}")
    if not 0 < len(text) <= chars_max:
        raise RejectedError(f"{what} {_short(text)}: {len(text)} characters; 1 to {chars_max} are allowed")
    return text if type(text) is str else str.__str__(text)  # an str Enum is taken for its text


def _check_token(token: str, what: str, text: str) -> str:
    if len(token) > limits.SUBJECT_BYTES_MAX:
        raise RejectedError(
            f"{what} {_short(text)}: encodes to {len(token)} bytes; the limit is {limits.SUBJECT_BYTES_MAX}"
        )
    return token


def _short(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:37] + "...")


def _escape(text: str, other: re.Pattern[bytes]) -> str:
    return other.sub(lambda found: b"=%02X" % found[0][0], text.encode("utf-8", "surrogatepass")).decode("ascii")


def _unescape(token: str) -> str:
    try:
        data = _ESCAPED.sub(lambda found: bytes((int(found[1], 16),)), token.encode("ascii"))
        return data.decode("utf-8", "surrogatepass")
    except ValueError as error:
        raise CodecError(f"subject token {token!r} is no encoded text") from error


def _escape_for_sql(found: re.Match[str]) -> str:
    return f"\x1a{ord(found[0]):04X}"


def _unescape_from_sql(found: re.Match[str]) -> str:
    return chr(int(found[1], 16))


def _own_id(text: str) -> UUID | None:
    """The UUID that the text spells canonically, unless names are hashed into that kind."""
    if not _CANONICAL_UUID.fullmatch(text):
        return None
    own = UUID(text)
    return None if own.version == 8 and own.variant == RFC_4122 else own


def _hashed_id(name: str) -> UUID:
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16, person=_NAME_DOMAIN).digest()
    bits = int.from_bytes(digest, "big")
    bits = bits & ~(0xF << 76) | 8 << 76  # version 8: "custom" (RFC 9562)
    bits = bits & ~(0x3 << 62) | 0x2 << 62  # RFC variant
    return UUID(int=bits)


CONFLICTS: Final = agent_ref(UUID("c0a15e70-c0f1-4c75-9a1e-5c0ff11c7106"))
"""The reserved agent whose entries are the conflict log; `agents.conflicts` in SQL knows it by this id."""

PROFILES: Final = agent_ref(UUID("c0a15e70-a6e7-4c75-9a1e-5c0ff11c7106"))
"""The reserved agent whose entries are what agents say of themselves, by their names."""

HEARTBEATS: Final = agent_ref(UUID("c0a15e70-bea7-4c75-9a1e-5c0ff11c7106"))
"""The reserved agent whose entries are the last signs of life of agents, by their names."""

RESERVED_AGENTS: Final = {
    CONFLICTS: "the conflict log",
    PROFILES: "what agents say of themselves",
    HEARTBEATS: "the heartbeats of agents",
}
"""Nobody's agents, and what their entries are: cenote alone writes them, and nobody meets them unasked."""

RESERVED_IDS: Final = frozenset(agent.id for agent in RESERVED_AGENTS)
