"""Agents and keys under their three spellings: what is accepted, what is refused, what they look like."""

import subprocess
import sys
from enum import StrEnum
from uuid import UUID, uuid4, uuid5

import pytest

from cenote import limits
from cenote.errors import CodecError, RejectedError
from cenote.model.key import (
    agent_ref,
    check_subject,
    decode_agent,
    decode_token,
    encode_key,
    encode_prefix,
    from_sql_key,
    sql_key,
    subject,
)

V4 = "550e8400-e29b-41d4-a716-446655440000"


@pytest.mark.parametrize(
    ("key", "token"),
    [
        ("plan", "plan"),
        ("plan.step.1", "plan.step.1"),
        ("a/b-c_D9", "a/b-c_D9"),
        ("agent:42", "agent=3A42"),
        ("a b", "a=20b"),
        ("*", "=2A"),
        (">", "=3E"),
        ("t1.*", "t1.=2A"),
        ("=41", "=3D41"),
        (".", "=2E"),
        ("..", "=2E=2E"),
        (".hidden", "=2Ehidden"),
        ("end.", "end=2E"),
        ("a..b", "a=2E=2Eb"),
        ("a/../b", "a/=2E=2E/b"),
        ("k\n", "k=0A"),
        ("\x00", "=00"),
        ("é", "=C3=A9"),
        ("\ud83d\ude00", "=ED=A0=BD=ED=B8=80"),
        ("😀", "=F0=9F=98=80"),
    ],
)
def test_a_key_becomes_tokens_and_comes_back(key: str, token: str) -> None:
    assert encode_key(key) == token
    assert decode_token(token) == key


@pytest.mark.parametrize("key", ["", "k" * (limits.KEY_CHARS_MAX + 1), "é" * 500, 5, None, b"k", True])
def test_a_bad_key_is_refused(key: object) -> None:
    with pytest.raises(RejectedError, match="key"):
        encode_key(key)  # type: ignore[arg-type]  # what a careless caller does


def test_the_message_names_the_limit_and_not_the_whole_key() -> None:
    with pytest.raises(RejectedError) as caught:
        encode_key("x" * 100_000)
    assert "512" in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "token",
    ["", "a..b", ".a", "a.", "=", "=4", "=4g", "=lease", "=41", "=2e", "=C3", "a b", "é", "*", "a=2Eb"],
)
def test_tokens_that_the_codec_cannot_have_made(token: str) -> None:
    with pytest.raises(CodecError):
        decode_token(token)


@pytest.mark.parametrize("token", ["", "=lease", "=", "a.b", "=61", "*", "é", "a" * 300])
def test_reserved_and_foreign_agent_tokens(token: str) -> None:
    with pytest.raises(CodecError):
        decode_agent(token)


def test_the_whole_subject_has_a_limit() -> None:
    agent = agent_ref("scout-7")
    assert subject("$KV.AGENT_STATE.", agent, "plan.a b") == "$KV.AGENT_STATE.scout-7.plan.a=20b"
    with pytest.raises(RejectedError, match="1024"):
        subject("$KV.AGENT_STATE.", agent_ref("é" * 120), "é" * 110)
    assert check_subject("s" * limits.SUBJECT_BYTES_MAX)
    with pytest.raises(RejectedError, match="1024"):
        check_subject("s" * (limits.SUBJECT_BYTES_MAX + 1))


@pytest.mark.parametrize("uuid", [V4, "00000000-0000-0000-0000-000000000000", str(uuid5(UUID(V4), "bob"))])
def test_a_canonical_uuid_is_its_own_id(uuid: str) -> None:
    agent = agent_ref(uuid)
    assert agent == (uuid, uuid, UUID(uuid))
    assert agent_ref(UUID(uuid)) == agent


@pytest.mark.parametrize(
    "name",
    [V4.upper(), "{" + V4 + "}", "urn:uuid:" + V4, V4.replace("-", ""), "bob", " bob", "Bob", "None", "*"],
)
def test_any_other_spelling_is_a_name(name: str) -> None:
    agent = agent_ref(name)
    assert agent.text == name
    assert agent.id.version == 8
    assert agent.id != UUID(V4)


def test_a_uuid_of_version_8_is_a_name() -> None:
    """Else `agent(str(id of bob))` would share rows with `agent("bob")` (flow rule 11)."""
    bob = agent_ref("bob")
    assert agent_ref(bob.id).id not in (bob.id, UUID(V4))
    assert agent_ref(bob.id) == agent_ref(str(bob.id))


def test_an_id_never_changes_between_processes_and_releases() -> None:
    code = "from cenote.model.key import agent_ref; print(agent_ref('scout-7').id)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(agent_ref("scout-7").id) == "5575902c-9f2b-8323-b8ce-e676b1240676"


@pytest.mark.parametrize("agent", ["", "a" * 201, "😀" * 200, 7, None, b"bob"])
def test_a_bad_agent_id_is_refused(agent: object) -> None:
    with pytest.raises(RejectedError, match="agent id"):
        agent_ref(agent)  # type: ignore[arg-type]  # what a careless caller does


def test_no_unicode_folding() -> None:
    composed, decomposed = "\u00e9", "e\u0301"
    assert agent_ref(composed).id != agent_ref(decomposed).id
    assert encode_key(composed) != encode_key(decomposed)


def test_an_agent_is_one_token() -> None:
    assert agent_ref("a.b").token == "a=2Eb"
    assert decode_agent("a=2Eb").text == "a.b"


def test_an_str_enum_is_taken_for_its_text() -> None:
    class Key(StrEnum):
        PLAN = "the plan"

    assert encode_key(Key.PLAN) == "the=20plan"
    assert type(agent_ref(Key.PLAN).text) is str


def test_a_random_uuid_object_is_an_agent() -> None:
    mine = uuid4()
    assert agent_ref(mine).id == mine


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("plan", "plan"),
        ("a\x00b", "a\x1a0000b"),
        ("\x1a", "\x1a001A"),
        ("\ud800", "\x1aD800"),
        ("\x1a0000", "\x1a001A0000"),
    ],
)
def test_a_key_in_sql(key: str, text: str) -> None:
    assert sql_key(key) == text
    assert from_sql_key(text) == key
    text.encode()


@pytest.mark.parametrize(("prefix", "token"), [("", ""), ("pl", "pl"), ("plan.", "plan"), ("a b", "a=20b"), ("..", "")])
def test_a_prefix_narrows_a_filter(prefix: str, token: str) -> None:
    assert encode_prefix(prefix) == token
