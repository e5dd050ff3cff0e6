"""All scenarios under one roof: what to build, with which rules, what must be seen, and what each rule is for."""

from collections.abc import Callable
from typing import NamedTuple

import asides
import cache
import expiry
import flow
import replicas
from scopes import SCOPES
from search import Model

Switches = frozenset[str]


class Case(NamedTuple):
    """One scenario of one model."""

    about: str
    build: Callable[[Switches], Model]
    on: Switches
    must: tuple[str, ...] = ()
    usual: bool = False


def _flow(name: str) -> Case:
    scope = SCOPES[name]
    return Case(scope.about, lambda on: flow.Flow(scope, on), flow.BUILT | scope.needs, scope.must, scope.usual)


def _aside(name: str) -> Case:
    aside = asides.ASIDES[name]
    return Case(asides.RULES[aside.rule], lambda on: asides.Aside(aside, on), asides.ALL, aside.must, usual=True)


CASES: dict[str, Case] = {
    **{name: _flow(name) for name in SCOPES},
    "cache": Case("L1 on one server, an event gets lost", cache.Coherence, cache.ALL - {"10 shown"},
        ("admitted", "refused", "gets lost", "after a hole", "not all shown")),
    "cache-whole": Case("L1 on one server that loses no event",
        lambda on: cache.Coherence(on, losses=0), cache.ALL - cache.PROPOSED, ("admitted", "refused")),
    "cache-replicas": Case("L1 where answers of several servers come in any order",
        lambda on: cache.Coherence(on, writes=2),
        cache.ALL - {"10 order"}, ("admitted", "refused", "gets lost", "after a hole")),
    "replicas": Case("a follower that lags, a new leader", replicas.Replicas, replicas.ALL,
        ("the leader changes", "then the leader", "is evicted", "is refused")),
    "replicas-own": Case("the same, for one who remembers and is promised own writes only",
        lambda on: replicas.Replicas(on, own_only=True), replicas.ALL - {"9 shown"},
        ("the leader changes", "then the leader", "is evicted")),
    "expiry": Case("a value that ends, a create, a sweeper, a slow flusher", expiry.Expiry, expiry.ALL,
        ("over the expired one", "leaves write", "ends write", "is hydrated", "first"), usual=True),
    **{name: _aside(name) for name in asides.ASIDES},
}  # fmt: skip

RULES: dict[str, str] = flow.RULES | cache.RULES | replicas.RULES | expiry.RULES | asides.RULES
PROPOSED: Switches = flow.PROPOSED | cache.PROPOSED
"""Rules that the model asks for and the code does not follow yet; the scenarios that need them are known to break."""

NEEDED_IN: dict[str, str] = {
    "fence": "flush", "ack last": "flush", "tombstone": "flush", "clean": "update", "create-only": "retry",
    "1": "durable", "2": "power-evict", "3": "power-update", "4 mends": "power-update", "5": "failover",
    "5 clean": "both", "5 asks": "failover-evict", "6": "create-sql", "7": "power-stuck", "12": "delete",
    "12 waits": "power-collect", "14": "poison", "16": "retry", "18": "flush",
    "F-conn": "power-update", "F-gen": "power-collect", "F-mend": "power-hidden", "F-start": "power-held",
    "F-wait": "power-update", "F-time epoch": "power-durable", "F-time since": "power-durable", "F-gc": "collect",
    "F-t0": "hydrate", "F-mark": "create", "F-aged": "hydrate", "F-inc": "power-update",
    "10 fill": "cache", "10 own": "cache", "10 overtaken": "cache", "10 newer": "cache", "10 hole": "cache",
    "10 ask": "cache", "10 refused": "cache", "10 shown": "cache-replicas", "10 order": "cache-whole",
    "9 absent": "replicas-own", "9 own": "replicas-own", "9 base": "replicas-own", "9 shown": "replicas",
    "9 majority": "replicas-own",
    **dict.fromkeys(expiry.RULES, "expiry"),
    **{aside.rule: name for name, aside in asides.ASIDES.items()},
}  # fmt: skip
"""The scenario that breaks soonest without the rule."""

UNNEEDED: dict[str, str] = {
    "5 epochs": "a rewind that SQL forgets is noticed anew, from the same entries",
    "4 once": "an epoch is a function of time (rule 3) and flushes are bound to the newest (F-inc): two do no harm",
}
"""Switches without which nothing breaks in these scopes; they are kept."""
