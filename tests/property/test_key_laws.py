"""Laws of the key codec: injective, reversible, never a wildcard, and the same agent in every tier (rule 11, I14)."""

import re
from contextlib import suppress
from uuid import UUID

from hypothesis import example, given
from hypothesis import strategies as st

from cenote import limits
from cenote.errors import CodecError, RejectedError
from cenote.model.key import (
    RESERVED,
    agent_ref,
    decode_agent,
    decode_token,
    encode_key,
    encode_prefix,
    from_sql_key,
    sql_key,
)

LEGAL = re.compile(r"[A-Za-z0-9_/=-]+(\.[A-Za-z0-9_/=-]+)*")
CHARACTERS = st.one_of(
    st.sampled_from(list("ab9.=*>:$% /\\\n\x00\x1aéß😀\u0301\ud800\udfff\ud83d\ude00-_")), st.characters(codec=None)
)
KEYS = st.text(CHARACTERS, min_size=1, max_size=60)
NAMES = st.text(CHARACTERS, min_size=1, max_size=limits.AGENT_CHARS_MAX)
UUIDS = st.uuids(allow_nil=True)


@given(KEYS)
@example(".")
@example("a..b")
@example("=41")
@example("\ud83d\ude00")
def test_a_key_comes_back_and_its_tokens_are_legal(key: str) -> None:
    token = encode_key(key)
    assert decode_token(token) == key
    assert LEGAL.fullmatch(token)


@given(KEYS, KEYS)
def test_two_keys_never_meet(one: str, other: str) -> None:
    assert (encode_key(one) == encode_key(other)) == (one == other)
    assert (sql_key(one) == sql_key(other)) == (one == other)


@given(st.text(st.sampled_from("=.aB4Fé*"), max_size=12))
def test_whatever_decodes_encodes_to_the_same_tokens(token: str) -> None:
    with suppress(CodecError):
        assert encode_key(decode_token(token)) == token


@given(KEYS, st.text(CHARACTERS, max_size=20))
def test_a_prefix_of_the_key_is_a_prefix_of_its_tokens_and_of_its_row(prefix: str, rest: str) -> None:
    assert encode_key(prefix + rest).startswith(encode_prefix(prefix))
    assert sql_key(prefix + rest) == sql_key(prefix) + sql_key(rest)


@given(st.text(CHARACTERS, max_size=60))
def test_a_key_in_sql_is_text_that_postgresql_takes(key: str) -> None:
    text = sql_key(key)
    assert from_sql_key(text) == key
    assert "\x00" not in text
    text.encode("utf-8")


@given(NAMES)
def test_an_agent_is_one_legal_token_and_comes_back(name: str) -> None:
    try:
        agent = agent_ref(name)
    except RejectedError as error:
        # 200 characters may encode to more than a subject holds
        assert str(limits.SUBJECT_BYTES_MAX) in str(error)  # noqa: PT017  # some names pass, some do not
        return
    assert LEGAL.fullmatch(agent.token)
    assert "." not in agent.token
    assert not re.match(re.escape(RESERVED) + "(?![0-9A-F]{2})", agent.token)
    assert decode_agent(agent.token) == agent
    assert agent.text == name


SPELLINGS = st.one_of(
    NAMES,
    UUIDS.map(str),
    UUIDS.map(lambda uuid: str(uuid).upper()),
    UUIDS.map(lambda uuid: f"{{{uuid}}}"),
    UUIDS.map(lambda uuid: uuid.urn),
    NAMES.filter(lambda name: len(name.encode("utf-8", "surrogatepass")) < 300).map(
        lambda name: str(agent_ref(name).id)
    ),
)


@given(st.lists(SPELLINGS, min_size=2, max_size=6))
def test_token_and_id_are_a_bijection(agents: list[str]) -> None:
    """Else one agent reads the other's rows after an eviction, or they fence each other out."""
    tokens: dict[str, UUID] = {}
    ids: dict[UUID, str] = {}
    for text in agents:
        try:
            agent = agent_ref(text)
        except RejectedError:
            continue
        assert tokens.setdefault(agent.token, agent.id) == agent.id
        assert ids.setdefault(agent.id, agent.token) == agent.token
    assert len({agent for agent in agents if agent in tokens}) <= len(ids)


@given(UUIDS)
def test_a_uuid_and_its_text_are_one_agent(uuid: UUID) -> None:
    assert agent_ref(uuid) == agent_ref(str(uuid))
    assert (agent_ref(uuid).id == uuid) == (uuid.version != 8)
