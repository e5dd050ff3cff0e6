"""Which start of the KV server the entries come from (flow rule 4, F-gen and F-inc).

A server that starts may have lost what it had not synced, so each start is an incarnation of its own: flushes are
bound to one, and so are a durable consumer and what is known to be mended.

In a cluster the server that a process happens to be connected to says nothing: two processes on two servers must agree.
There the term of the stream's leader is the incarnation, which changes whenever another server's log becomes the truth,
and when the leader itself starts anew.
"""

import hashlib

from cenote.kv.bucket import StreamInfo
from cenote.kv.link import Link


def incarnation(link: Link, info: StreamInfo) -> str:
    """The incarnation that answered `info` on the present connection of `link`; "" if that is another one by now."""
    if info.generation != link.generation:
        return ""
    if not info.leader_since:  # a single server names itself as the leader, without a term
        return link.server_id
    return hashlib.sha256(f"{info.leader} {info.leader_since}".encode()).hexdigest()[:24]


def durable_prefix(epoch: int, start: str) -> str:
    """What the names of durables begin with under which this incarnation's entries are flushed."""
    return f"flush_{epoch}_{start[:12]}"


def mended_mark(epoch: int, start: str) -> str:
    """What the stream's metadata says once KV has been compared with SQL in this epoch and incarnation (F-wait)."""
    return f"{epoch}.{start}"
