"""The three buckets: what their streams must look like, creating them, and refusing one that would lose data.

AGENT_STATE is the write-behind log (design 9): nothing but an eviction after the flush may remove an entry,
so it has no age limit, refuses new keys when full instead of dropping old ones, and permits neither rollups
(one header on one key would wipe the bucket) nor deletes of single messages (they leave the consumer's floor
behind, rule 1).
SESSION_DATA and QUERY_CACHE are ordinary buckets whose entries die of age.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from cenote.config import KvConfig
from cenote.errors import SetupError
from cenote.kv.clock import parse_time_us
from cenote.kv.deadline import ask, with_deadline
from cenote.kv.errors import NO_PEERS, JsError, JsNotFound, JsUnavailable, NoSpace
from cenote.kv.link import Link
from cenote.naming import AGENT_STATE, QUERY_CACHE, SESSION_DATA, Names

_NS = 1_000_000_000
_DUPLICATE_WINDOW_NS = 100_000_000  # 0 would silently mean two minutes; message ids are not used
_MARKER_TTL_S = 60  # how long the server tells of an entry that died of age
_SIDE_SHARE = 8  # sessions and cache may each take an eighth of what the state may
_NAME_IN_USE = 10058
_OVERLAP = 10065


class StreamInfo(NamedTuple):
    """A stream as its leader describes it. Times in ms since 1970."""

    created: str
    first_seq: int
    last_seq: int
    messages: int
    bytes: int
    metadata: dict[str, str]
    config: dict[str, Any]
    leader: str | None
    ts_ms: int
    generation: int
    leader_since: str = ""
    alone_ms: int = 0  # for how long the leader has not heard of a majority; it goes on answering all the same


@dataclass(frozen=True)
class Buckets:
    """What `ensure` found or made."""

    state: StreamInfo
    session: StreamInfo
    cache: StreamInfo


async def ensure(
    link: Link,
    names: Names,
    config: KvConfig,
    *,
    cache_ttl_s: int = 300,
    metadata: dict[str, str] | None = None,
) -> Buckets:
    """Create what is missing (any number of processes at once), verify what is there.

    metadata: `cenote.*` keys for a state stream that is created by this call; one that exists keeps its own.

    Raises:
        SetupError: a bucket exists with a setting that loses data, named; or the account has no room.
        UnavailableError: JetStream does not answer before `kv.deadline_ms`.
    """
    state = state_config(names, config, link.server_version) | {"metadata": metadata or {}}
    session = ttl_config(names, SESSION_DATA, config)
    cache = ttl_config(names, QUERY_CACHE, config, cache_ttl_s) | {"discard": "old"}
    found = [await _create(link, wanted, config.deadline_ms) for wanted in (state, session, cache)]
    _refuse(found[0].config, state_faults(found[0].config, state))
    for info, wanted in zip(found[1:], (session, cache), strict=True):
        _refuse(info.config, ttl_faults(info.config, wanted))
    return Buckets(*found)


def state_config(names: Names, config: KvConfig, server_version: tuple[int, ...]) -> dict[str, Any]:
    """The stream under AGENT_STATE."""
    filter_subject = names.subject(AGENT_STATE) + ">"
    return {
        "name": names.stream(AGENT_STATE),
        "subjects": [filter_subject],
        "retention": "limits",
        "storage": "file",
        "num_replicas": config.replicas,
        "max_msgs_per_subject": 1,
        "max_msgs": -1,
        "max_bytes": config.bytes_max,
        "max_age": 0,
        "discard": "new",
        "allow_direct": True,
        "allow_rollup_hdrs": False,
        "deny_delete": True,
        "deny_purge": False,
        "allow_msg_ttl": False,
        "duplicate_window": _DUPLICATE_WINDOW_NS,
        "compression": "none",
        "republish": {"src": filter_subject, "dest": names.republished(AGENT_STATE) + ">"},
        **({"allow_atomic": True} if server_version >= (2, 12) else {}),
    }


async def ensure_expiring(link: Link, names: Names, bucket: str, config: KvConfig, settings: dict[str, Any]) -> None:
    """Create a bucket whose entries die of age, each at its own, with settings of its own; verify the one that is
    there, and take from it the `max_age` that an older version gave it. Raises as `ensure`."""
    wanted = ttl_config(names, bucket, config) | settings
    info = await _create(link, wanted, config.deadline_ms)
    _refuse(info.config, ttl_faults(info.config, wanted))
    if info.config.get("max_age"):
        await link.api(f"STREAM.UPDATE.{info.config['name']}", info.config | {"max_age": 0})


def ttl_config(names: Names, bucket: str, config: KvConfig, ttl_s: int = 0) -> dict[str, Any]:
    """The stream under a bucket whose entries die of age: each at its own, at the latest after `ttl_s`, if given."""
    return {
        "name": names.stream(bucket),
        "subjects": [names.subject(bucket) + ">"],
        "retention": "limits",
        "storage": "file",
        "num_replicas": config.replicas,
        "max_msgs_per_subject": 1,
        "max_msgs": -1,
        "max_bytes": max(1, config.bytes_max // _SIDE_SHARE),
        "max_age": ttl_s * _NS,
        "discard": "new",
        "allow_direct": True,
        "allow_rollup_hdrs": True,  # the server's own markers need it
        "allow_msg_ttl": True,
        "subject_delete_marker_ttl": _MARKER_TTL_S * _NS,
        "duplicate_window": _DUPLICATE_WINDOW_NS,
        "compression": "none",
    }


def state_faults(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Each setting of an AGENT_STATE stream by which acked writes would be lost or reads be wrong."""
    must = {
        "subjects": wanted["subjects"],
        "retention": "limits",
        "storage": "file",
        "max_msgs_per_subject": 1,
        "max_age": 0,
        "discard": "new",
        "allow_direct": True,
        "republish": wanted["republish"],
    }
    never = {
        "allow_rollup_hdrs": "a header on one key could wipe the bucket",
        "allow_msg_ttl": "unflushed entries would expire",
        "subject_delete_marker_ttl": "markers would replace unflushed entries",
        "sealed": "it takes no writes",
        "deny_purge": "nothing could be evicted",
        "mirror": "it is a copy of another stream",
        "sources": "it takes entries from other streams",
        "subject_transform": "entries would be stored under other subjects",
        "discard_new_per_subject": "a key could be written only once",
        "allow_msg_counter": "values would be summed up",
        "allow_msg_schedules": "a header could publish to other subjects",
    }
    faults = [
        f"{name} is {found.get(name)!r}, must be {value!r}"
        for name, value in must.items()
        if _plain(found.get(name)) != _plain(value)
    ]
    faults += [f"{name} is {found[name]!r}: {why}" for name, why in never.items() if found.get(name)]
    if found.get("persist_mode") == "async":
        faults.append("persist_mode is 'async': acked writes are lost on a crash")
    if found.get("max_msgs", -1) > 0:
        faults.append(f"max_msgs is {found['max_msgs']}, must be -1")
    return faults


def ttl_faults(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The same for SESSION_DATA and QUERY_CACHE, which may lose entries to age but to nothing else."""
    must = ("subjects", "retention", "max_msgs_per_subject", "discard", "allow_direct", "allow_msg_ttl")
    return [
        f"{name} is {found.get(name)!r}, must be {wanted[name]!r}"
        for name in must
        if _plain(found.get(name)) != _plain(wanted[name])
    ]


def _plain(value: Any) -> Any:
    """Absent, false and zero are one to the server, which leaves them out; parts of a mapping, too."""
    if isinstance(value, dict):
        return {name: part for name, part in value.items() if part}
    return value or None


def _refuse(found: dict[str, Any], faults: list[str]) -> None:
    if faults:
        raise SetupError(
            f"stream {found['name']} would lose data: {'; '.join(faults)}",
            hint="change it with `nats stream edit`, or use another kv.url or namespace",
        )


async def _create(link: Link, wanted: dict[str, Any], deadline_ms: int) -> StreamInfo:
    name = wanted["name"]
    try:
        return await stream_info(link, name, deadline_ms)
    except JsNotFound:
        pass
    try:
        # Made a second time, it is the same stream, or another process's, which is verified below.
        make = partial(ask, link, f"STREAM.CREATE.{name}", wanted, link.request_timeout_ms)
        await with_deadline(link, make, deadline_ms, question=True)
    except NoSpace as error:
        raise SetupError(
            f"no room for stream {name} with max_bytes {wanted['max_bytes']}: {error.description}",
            hint="lower kv.bytes_max, or raise the limit of the server or the account",
        ) from error
    except JsUnavailable as error:
        if error.err_code == NO_PEERS:
            error.hint = f"kv.replicas={wanted['num_replicas']} needs as many servers with JetStream"
        raise
    except JsError as error:
        if error.err_code == _OVERLAP:
            raise SetupError(
                f"another stream already takes the subjects {wanted['subjects']}",
                hint="use another namespace",
            ) from error
        if error.err_code != _NAME_IN_USE:  # then another process was quicker: verify what it made
            raise SetupError(f"stream {name} cannot be created: {error.description}") from error
    return await stream_info(link, name, deadline_ms)


async def stream_info(link: Link, name: str, deadline_ms: int = 0) -> StreamInfo:
    """Ask the stream's leader. Raises JsNotFound and what `Link.api` raises."""
    timeout_ms = min(deadline_ms or link.request_timeout_ms, link.request_timeout_ms)
    question = partial(ask, link, f"STREAM.INFO.{name}", None, timeout_ms)
    answer = await with_deadline(link, question, deadline_ms, question=True) if deadline_ms else await question()
    state, config, cluster = answer["state"], answer["config"], answer.get("cluster") or {}
    return StreamInfo(
        created=answer["created"],
        first_seq=state["first_seq"],
        last_seq=state["last_seq"],
        messages=state["messages"],
        bytes=state["bytes"],
        metadata=config.get("metadata") or {},
        config=config,
        leader=cluster.get("leader"),
        leader_since=cluster.get("leader_since") or "",
        alone_ms=_alone_ms(cluster.get("replicas") or []),
        ts_ms=parse_time_us(answer["ts"].encode()) // 1000,
        generation=link.generation,
    )


def _alone_ms(followers: list[dict[str, Any]]) -> int:
    """Since when those followers are silent without which there is no majority; they answer a heartbeat a second."""
    silent_ns = sorted(int(one.get("active") or 0) for one in followers)
    needed = (len(followers) + 1) // 2
    return silent_ns[needed - 1] // 1_000_000 if needed else 0


async def update_metadata(link: Link, name: str, changes: dict[str, str]) -> StreamInfo:
    """Set `cenote.*` keys of a stream's metadata, all else as it is.

    Read, modify, write: the server knows no condition here, so callers hold the lock of the epochs row.
    """
    assert all(key.startswith("cenote.") for key in changes)
    info = await stream_info(link, name)
    config = info.config | {"metadata": info.metadata | changes}
    await link.api(f"STREAM.UPDATE.{name}", config)
    return await stream_info(link, name)
