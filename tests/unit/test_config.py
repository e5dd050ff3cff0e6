"""The configuration: who wins, what is refused and with which words, and that no secret is printed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cenote import limits
from cenote.config import Config, KvConfig, load, origins, shown
from cenote.errors import SetupError
from cenote.naming import Names


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("CENOTE_"):
            monkeypatch.delenv(name)


def test_the_defaults_are_the_documented_ones() -> None:
    """The table of the manual, whole: a default that changes is a change of the contract."""
    values = shown(load())
    assert values.pop("embedded.data_dir").endswith("cenote")
    assert {name: value for name, value in values.items() if value is not None} == {
        "namespace": "default",
        "kv.replicas": 1, "kv.sync_interval_ms": 200, "kv.bytes_max": 2**30, "kv.request_timeout_ms": 5000,
        "kv.deadline_ms": 15000, "kv.outage_after_ms": 5000, "kv.reads_when_down": "refuse",
        "sql.outage_after_ms": 5000,
        "kv.fast_lane": True,
        "sql.pool_min": 2, "sql.pool_max": 10, "sql.acquire_timeout_s": 30, "sql.idle_timeout_s": 600,
        "sql.max_lifetime_s": 7200, "sql.search_index": "off",
        "state.ttl_s": 1800, "state.resolver": "lww", "state.resolvers": "{}",
        "state.tombstone_s": 86400,
        "session.ttl_s": 3600, "cache.ttl_s": 300, "routes.override": "{}",
        "checkpoints.hours": 0, "checkpoints.days": 0,
        "repair.enabled": True, "repair.every_s": 21_600, "repair.entries_per_s": 1_000,
        "tasks.lease_s": 30, "tasks.attempts_max": 5, "tasks.poll_ms": 1000, "tasks.retention_s": 2_592_000,
        "tasks.retry_ms": 1000, "tasks.retry_ms_max": 3_600_000,
        "messages.partition_s": 604_800, "messages.ahead_count": 2, "messages.poll_ms": 1000,
        "messages.search_index": False,
        "knowledge.vector_index": "auto", "knowledge.vector_index_rows": 50_000,
        "memory.entries_max": 10000, "memory.bytes_max": 67108864, "memory.ttl_s": 60,
        "flush.enabled": True, "flush.active_max": 1, "flush.threshold_count": 50, "flush.interval_ms": 20,
        "flush.batch_count_max": 500, "flush.window_ms": 200, "flush.backlog_count_max": 1000000,
        "flush.drain_ms": 5000, "flush.changes_s": 604800.0,
        "conflicts.ttl_s": 604_800, "conflicts.count_max": 100_000,
        "retry.base_ms": 5, "retry.wait_ms_max": 5000, "retry.deadline_ms": 15000,
        "health.sql_ms_max": 10, "health.window_s": 10,
        "admin.log_format": "text", "telemetry.traces": False,
        "admin.host": "127.0.0.1",
    }  # fmt: skip


def test_arguments_over_environment_over_file_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cenote.toml"
    file.write_text('namespace = "f"\n[flush]\ninterval_ms = 1\nthreshold_count = 1\nbatch_count_max = 1\n')
    monkeypatch.setenv("CENOTE_FLUSH__INTERVAL_MS", "2")
    monkeypatch.setenv("CENOTE_FLUSH__THRESHOLD_COUNT", "2")
    monkeypatch.setenv("CENOTE_FLUSH__BATCH_COUNT_MAX", "2")
    config = load(file, overrides={"flush__batch_count_max": 3})
    flush = config.flush
    assert (flush.batch_count_max, flush.threshold_count, config.namespace, flush.window_ms) == (3, 2, "f", 200)
    came = origins(config)
    assert came["flush.batch_count_max"] == "argument"
    assert came["flush.interval_ms"] == "environment CENOTE_FLUSH__INTERVAL_MS"
    assert came["namespace"] == f"file {file}"
    assert came["flush.window_ms"] == "default"
    assert came.keys() == shown(config).keys()


def test_a_config_keeps_what_it_knows_under_new_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CENOTE_FLUSH__INTERVAL_MS", "2")
    first = Config(kv=KvConfig(replicas=3), memory={"ttl_s": 1})  # type: ignore[arg-type]  # a dict will do
    monkeypatch.setenv("CENOTE_FLUSH__INTERVAL_MS", "9")
    second = load(first, overrides={"memory__ttl_s": 5, "namespace": "ns"})
    assert (second.kv.replicas, second.flush.interval_ms, second.memory.ttl_s) == (3, 2, 5)
    assert second.namespace == "ns"
    assert first.memory.ttl_s == 1
    assert origins(second)["flush.interval_ms"].startswith("environment")
    assert origins(second)["kv.replicas"] == origins(second)["memory.ttl_s"] == "argument"
    assert origins(second)["kv.bytes_max"] == "default"
    assert load(first) == first


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CENOTE_KV__URL", "")
    assert load().kv.url is None
    assert origins(load())["kv.url"] == "default"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"kv__replicas": 0}, "kv.replicas"),
        ({"kv__replicas": 6}, "kv.replicas"),
        ({"kv__replicas": True}, "kv.replicas"),
        ({"kv__replicas": "many"}, "kv.replicas"),
        ({"kv__request_timeout_ms": 20_000}, "request_timeout_ms (20000) is above deadline_ms (15000)"),
        ({"kv__tls_cert": "/x"}, "tls_key"),
        ({"sql__pool_min": 11}, "pool_min (11) is above pool_max (10)"),
        ({"sql__migrate": "yes"}, "sql.migrate"),
        ({"sql__acquire_timeout_s": float("nan")}, "sql.acquire_timeout_s"),
        ({"state__ttl_s": 1.9}, "state.ttl_s"),
        ({"state__ttl_s": 1e12}, "state.ttl_s"),
        ({"session__ttl_s": 0}, "session.ttl_s"),
        ({"flush__batch_count_max": 49}, "threshold_count (50) is above batch_count_max (49)"),
        ({"flush__interval_ms": 201}, "interval_ms (201) is above window_ms (200)"),
        ({"flush__active_max": 0}, "flush.active_max"),
        ({"retry__base_ms": 6000}, "base_ms (6000) is above wait_ms_max (5000)"),
        ({"embedded__data_dir": ""}, "embedded.data_dir"),
        ({"admin__port": 65_536}, "admin.port"),
        ({"namespace": ""}, "namespace"),
        ({"namespace": "a-b"}, "namespace"),
        ({"namespace": "a" * 33}, "namespace"),
        ({"namespace": "é"}, "namespace"),
        ({"namespace": "n\n"}, "namespace"),
        ({"namespace": "pg"}, "namespace"),
        ({"flush__intervall_ms": 1}, "flush__intervall_ms: there is no such setting"),
        ({"flushh__interval_ms": 1}, "flushh__interval_ms: there is no such setting"),
        ({"interval_ms": 1}, "interval_ms: there is no such setting"),
        ({"sql__url": "postgresql://h/d"}, "namespace of its own"),
    ],
    ids=str,
)
def test_what_is_refused_names_the_field(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(SetupError) as caught:
        load(overrides=overrides)
    assert message in str(caught.value)


def test_an_embedded_nats_with_a_remote_postgresql_and_a_namespace() -> None:
    assert load(overrides={"sql__url": "postgresql://h/d", "namespace": "mine"}).sql.url is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [("CENOTE_FLUSH__INTERVALL_MS", "1"), ("CENOTE_FLUSHH__INTERVAL_MS", "1"), ("CENOTE_NAMESPCE", "x"),
     ("CENOTE_FLUSH__INTERVAL_MS", "soon"), ("CENOTE_KV_URL", "nats://x")],
)  # fmt: skip
def test_a_wrong_variable_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match=r"(?i)" + name.removeprefix("CENOTE_").split("__")[-1]):
        load()


def test_the_crash_point_of_the_tests_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CENOTE_CRASH_AT", "flush.committed:3")
    load()


@pytest.mark.parametrize(
    "text", ["[flush\n", "[flush]\nintervall_ms = 1\n", "[flushh]\n", 'nam = "x"\n', "[flush]\ninterval_ms = []\n"]
)
def test_a_wrong_file_is_an_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cenote.toml"
    file.write_text(text)
    with pytest.raises(SetupError):
        load(file)
    with pytest.raises(SetupError, match="nowhere"):
        load(tmp_path / "nowhere.toml")


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [
        ("kv__password", SECRET, ""),
        ("admin__token", SECRET, ""),
        ("kv__url", f"nats://bob:{SECRET}@a,b:4222", "nats://bob:***@a,b:4222"),
        ("kv__url", f"nats://{SECRET}@a", "nats://***@a"),
        ("kv__url", f"nats://bob:x,{SECRET}/@y@a", "nats://bob:***@a"),
        ("kv__url", f"nats://bob:{SECRET}@a,nats://eve:{SECRET}@b", "@b"),
        ("kv__url", f"bob:{SECRET}@a", "@a"),
        ("sql__url", f"postgresql://bob:{SECRET}@h/d", "postgresql://bob:***@h/d"),
        ("sql__url", "postgresql://bob@h/d", "postgresql://bob@h/d"),
        ("sql__url", f"postgresql://h/d?user=bob&password={SECRET}&sslmode=require", "&sslmode=require"),
        ("sql__url", f"host=h user=bob password={SECRET}", "host=h"),
    ],
)
def test_secrets_are_never_printed(name: str, value: str, seen: str) -> None:
    config = load(overrides={name: value, "namespace": "ns"})
    section, field = name.split("__")
    setting = getattr(getattr(config, section), field)
    assert setting.get_secret_value() == value
    printed = [repr(config), str(config), f"{setting} {setting!r}", str(shown(config)), str(config.model_dump())]
    printed.append(config.model_dump_json())
    assert len(printed) == 6
    for text in printed:
        assert SECRET not in text
    assert seen in str(setting)


def test_an_error_does_not_quote_the_value() -> None:
    with pytest.raises(SetupError) as caught:
        load(overrides={"kv__password": [SECRET], "admin__token": {SECRET: 1}})
    text, error = "", caught.value
    while error is not None:
        text += repr(error) + str(error)
        error = error.__cause__  # type: ignore[assignment]  # the chain that a traceback shows
    assert "kv.password" in text
    assert "admin.token" in text
    assert SECRET not in text


def test_a_config_never_changes() -> None:
    config = load()
    with pytest.raises(ValueError, match="frozen"):
        config.namespace = "x"
    with pytest.raises(ValueError, match="frozen"):
        config.flush.interval_ms = 1


def test_migration_is_automatic_only_where_the_server_is_ours() -> None:
    remote = {"sql__url": "postgresql://h/d", "namespace": "ns"}
    assert load().migrates
    assert not load(overrides=remote).migrates
    assert load(overrides=remote | {"sql__migrate": "auto"}).migrates
    assert not load(overrides={"sql__migrate": "check"}).migrates


def test_the_configuration_is_loaded_only_when_it_is_needed() -> None:
    """pydantic-settings takes longer to import than all of the face may."""
    code = "import sys, cenote.naming, cenote.errors; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_names_of_a_namespace() -> None:
    ours, theirs = Names(), Names("ns")
    assert ours.bucket("AGENT_STATE") == "AGENT_STATE"
    assert ours.stream("AGENT_STATE") == "KV_AGENT_STATE"
    assert ours.subject("AGENT_STATE") == "$KV.AGENT_STATE."
    assert ours.republished("AGENT_STATE") == "kvw.AGENT_STATE."
    assert ours.schema("agents") == ours.schema_name("agents") == "agents"
    assert theirs.stream("AGENT_STATE") == "KV_ns_AGENT_STATE"
    assert theirs.subject("AGENT_STATE") == "$KV.ns_AGENT_STATE."
    assert theirs.schema("agents") == '"ns_agents"'
    assert theirs.schema_name("agents") == "ns_agents"
    assert load(overrides={"namespace": "ns"}).names == theirs
    with pytest.raises(SetupError, match="namespace"):
        Names("a.b")


def test_the_longest_namespace_fits_a_postgresql_name() -> None:
    assert len(Names("n" * limits.NAMESPACE_CHARS_MAX).schema_name("knowledge")) <= 63


def test_resolvers_by_pattern_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CENOTE_STATE__RESOLVERS", '{"votes*": "crdt"}')
    config = load()
    assert config.state.resolvers == {"votes*": "crdt"}
    assert shown(config)["state.resolvers"] == '{"votes*": "crdt"}'
