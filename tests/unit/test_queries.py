"""SQL lives in files: named blocks with their reasons, one placeholder, numbered migrations."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cenote.config import Names
from cenote.sql.loader import Queries, blocks
from cenote.sql.locks import advisory_key
from cenote.sql.migrate import known, print_sql
from cenote.sql.state import prefix_end


def test_every_query_says_why_and_by_which_index() -> None:
    assert len(blocks()) > 20
    for name, text in blocks().items():
        assert re.match(r"-- why: .+\n", text), name
        assert re.search(r"^-- index: [a-z_, ]+\n", text, re.MULTILINE), name


def test_the_schema_is_the_namespaces_and_quoted() -> None:
    plain, other = Queries(Names()), Queries(Names("Tenant_7"))
    assert "FROM agents.state\n" in plain["read"]
    assert 'FROM "Tenant_7_agents".state\n' in other["read"]
    for name, text in [*plain.items(), *other.items()]:
        assert "{agents}" not in text, name
        assert "--" not in text, name


def test_an_unknown_query_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        Queries(Names())["no_such_query"]


def test_advisory_keys_differ_by_purpose_and_namespace_and_fit_a_bigint() -> None:
    keys = [advisory_key(Names(n), p) for n in ("default", "a", "A") for p in ("migrate", "epochs")]
    assert len(set(keys)) == 6
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_migrations_are_numbered_and_say_what_they_need() -> None:
    numbers = [m.number for m in known()]
    assert numbers == sorted(set(numbers))
    assert known()[0].name == "foundation"
    assert all(m.min_reader <= m.number for m in known())


def test_the_printed_script_is_whole_and_only_names_its_own_schema() -> None:
    script = print_sql(Names("t"))
    assert script.count("BEGIN;") == script.count("COMMIT;") == 1
    assert 'CREATE SCHEMA IF NOT EXISTS "t_agents";' in script
    assert not re.search(r"(?<![\w\"])agents\.", script)
    assert "$1" not in script.replace("$$", "")


_KEYS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.text(st.sampled_from("a\ud7ff\ue000\U0010ffff"), max_size=6),
)


@given(prefix=_KEYS, key=_KEYS)
def test_a_prefix_is_a_range_in_byte_order(prefix: str, key: str) -> None:
    end = prefix_end(prefix).encode()
    for candidate in (key, prefix + key):
        inside = prefix.encode() <= candidate.encode() < end
        assert inside == candidate.startswith(prefix)
