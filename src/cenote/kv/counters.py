"""The counter stream: JetStream adds up itself (`allow_msg_counter`, nats-server 2.12), so nobody reads before adding.

Each message says by how much (`Nats-Incr: +3`) and is stored with the running total of its subject (`{"val":"45"}`),
which the acknowledgement carries, too; so the last message of a subject is all that is kept. Seen on 2.15.1:

- such a stream takes counter messages only (error 10169 without the header, 10171 for anything but an integer, or with
  an expected sequence beside it), knows no TTLs, and no `discard: new`: a bound would drop the oldest totals silently,
  so there is none but the server's own, which refuses;
- `Nats-Msg-Id` works with it: a repeat within the duplicate window is acknowledged with `duplicate` and without a
  total. Only a server that was not restarted remembers the ids of messages that were superseded since.

The subjects bear a random part that is made up when the stream is created. What is sent to a stream that is gone finds
nobody in the next one, which counts from zero until `engine/counter_mender.py` has brought it up.
"""

import json
import secrets
from typing import Any, NamedTuple

from cenote import limits
from cenote.config import KvConfig
from cenote.errors import SetupError
from cenote.kv.bucket import StreamInfo
from cenote.kv.errors import JsError, JsUnavailable, NoSpace, NotSent, js_error
from cenote.kv.link import Link
from cenote.kv.message import Message, header_value
from cenote.kv.mux import Reply
from cenote.kv.stream import StateStream
from cenote.naming import COUNTERS, Names

_NEEDED = (2, 12)
_NAME_IN_USE = 10058


class Added(NamedTuple):
    """What an increment's acknowledgement says; total is None when this id was counted before, at `sequence`."""

    sequence: int
    total: int | None


class CounterStream(StateStream):
    """The stream under COUNTERS on one link."""

    def __init__(self, link: Link, names: Names, *, timeout_ms: int = 5000) -> None:
        super().__init__(link, names, timeout_ms=timeout_ms, bucket=COUNTERS)

    async def create(self, config: KvConfig, metadata: dict[str, str]) -> None:
        """Make it, unless another process was quicker.

        Raises:
            SetupError: the server is too old for counters, or has no room for another stream.
        """
        version = self.link.server_version
        if version < _NEEDED:
            raise SetupError(
                f"counters need nats-server {'.'.join(map(str, _NEEDED))} or newer;"
                f" this one is {'.'.join(map(str, version))}",
                tier="DISTRIBUTED_KV",
                hint="upgrade it, or count in a key: agent.update, or a PNCounter",
            )
        try:
            await self.link.api(f"STREAM.CREATE.{self.name}", _config(self, config) | {"metadata": metadata})
        except JsUnavailable:
            raise
        except NoSpace as error:
            raise SetupError(f"no room for stream {self.name}: {error.description}") from error
        except JsError as error:
            if error.err_code != _NAME_IN_USE:
                raise SetupError(f"stream {self.name} cannot be created: {error.description}") from error

    async def increment(self, subject: str, amount: int, operation: str, timeout_ms: int, *, generation: int) -> Added:
        """Add to the total of a subject, once for each `operation` within the duplicate window.

        Raises:
            NotSent, NoResponders, JsError: nothing was counted.
            AnswerLost: unknown.
        """
        if self.link.generation != generation:
            raise NotSent("reconnected since the stream was looked at", tier="DISTRIBUTED_KV")
        header = b"Nats-Incr: %+d\r\nNats-Msg-Id: %b\r\n" % (amount, operation.encode("ascii"))
        return _added(await self.link.request(subject, header, b"", timeout_ms))


def life_of(info: StreamInfo) -> str:
    """What the subjects of its counters begin with."""
    return str(info.config["subjects"][0]).removesuffix(">")


def faults(info: StreamInfo) -> list[str]:
    """Each setting by which a counter stream would lose totals, or count otherwise."""
    must = {"allow_msg_counter": True, "retention": "limits", "storage": "file", "max_msgs_per_subject": 1}
    never = ("max_age", "mirror", "sources", "subject_transform", "sealed")
    config = info.config
    found = [
        f"{name} is {config.get(name)!r}, must be {value!r}"
        for name, value in must.items()
        if config.get(name) != value
    ]
    found += [f"{name} is {config[name]!r}" for name in never if config.get(name)]
    return found + [f"{name} is {config[name]}" for name in ("max_msgs", "max_bytes") if config.get(name, -1) > 0]


def total_of(message: Message) -> int:
    """The running total that a message carries."""
    return int(json.loads(message.payload)["val"])


def operation_of(message: Message) -> str:
    """The id under which it was added; "" when it was added by somebody else's client."""
    return (header_value(message.header, b"Nats-Msg-Id: ") or b"").decode()


def amount_of(message: Message) -> int:
    """By how much it changed the total."""
    return int(header_value(message.header, b"Nats-Incr: ") or 0)


def _added(reply: Reply) -> Added:
    answer: dict[str, Any] = json.loads(reply.payload)
    error = answer.get("error")
    if error:
        raise js_error(error.get("code", 0), error.get("err_code", 0), error.get("description", ""))
    return Added(answer["seq"], None if answer.get("duplicate") else int(answer["val"]))


def _config(stream: CounterStream, config: KvConfig) -> dict[str, Any]:
    return {
        "name": stream.name,
        "subjects": [f"{stream.prefix}{secrets.token_hex(4)}.>"],
        "retention": "limits",
        "storage": "file",
        "num_replicas": config.replicas,
        "max_msgs_per_subject": 1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "discard": "old",
        "allow_direct": True,
        "allow_rollup_hdrs": False,
        "allow_msg_counter": True,
        "deny_delete": True,
        "deny_purge": True,
        "duplicate_window": limits.COUNTER_WINDOW_S * 1_000_000_000,
        "compression": "none",
    }
