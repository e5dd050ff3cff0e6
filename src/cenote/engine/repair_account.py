"""What a repair has found and mended, kept so that the figures stay exact whatever dies between two statements.

What a page has found is written down before it is mended, and taken off again with the page. Who looks at it once
more, because an answer was lost or because its process died, knows by that what was counted already, and what his
predecessor mended: it was found, and does not differ any more.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from cenote.engine.differences import Difference
from cenote.errors import LifecycleError
from cenote.sql.repairs import Begun, Progress, RepairTable

_SAMPLES: Final = 100

Place = tuple[str, str]
"""An agent and a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One difference. `mended` is false in a dry run, and where it cannot be mended."""

    kind: str
    agent: str
    key: str
    mended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What a repair has done.

    Attributes:
        id: its own.
        reason: "asked", "violation" or "background".
        dry_run: nothing was mended.
        scanned: entries that were compared.
        found, mended: how many differences, by kind.
        findings: the first hundred of them.
        begun_at, ended_at: PostgreSQL's time; no end: it goes on, or was interrupted.
    """

    id: UUID
    reason: str
    dry_run: bool
    scanned: int
    found: dict[str, int]
    mended: dict[str, int]
    findings: tuple[Finding, ...] = ()
    begun_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def left(self) -> dict[str, int]:
        """What is not mended, by kind."""
        left = {kind: count - self.mended.get(kind, 0) for kind, count in self.found.items()}
        return {kind: count for kind, count in left.items() if count}


def listed(table_rows: Iterable[tuple[Begun, str, bool, datetime, datetime | None]]) -> list[Repaired]:
    """Repairs as the table holds them."""
    return [
        replace(Account(begun, reason, dry_run).told(), begun_at=begun_at, ended_at=ended_at)
        for begun, reason, dry_run, begun_at, ended_at in table_rows
    ]


@dataclass
class Account:
    """The figures of one run."""

    begun: Begun
    reason: str
    dry_run: bool
    after: int = field(init=False)
    scanned: int = field(init=False)

    def __post_init__(self) -> None:
        begun = self.begun
        self.after, self.scanned = begun.after, begun.scanned
        self._found: Counter[str] = Counter(json.loads(begun.found))
        self._mended: Counter[str] = Counter(json.loads(begun.mended))
        self._findings = [Finding(**one) for one in json.loads(begun.samples)]
        self._open: dict[Place, str] = {(agent, key): kind for agent, key, kind in json.loads(begun.open)}

    def found(self, differ: Iterable[Difference]) -> list[str]:
        """Count differences of the page in hand, each once; the kinds of those that are new."""
        new = [(place_of(one), one.kind.value) for one in differ if place_of(one) not in self._open]
        for place, kind in new:
            self._open[place] = kind
            self._found[kind] += 1
            if len(self._findings) < _SAMPLES:
                self._findings.append(Finding(kind=kind, agent=place[0], key=place[1], mended=False))
        return [kind for _, kind in new]

    def settle(self, left: Collection[Place]) -> list[str]:
        """The page in hand is done; of what it had found, this is not mended. The kinds of what is."""
        mended = {place: kind for place, kind in self._open.items() if place not in left and not self.dry_run}
        self._mended.update(mended.values())
        self._findings = [
            replace(one, mended=True) if mended.get((one.agent, one.key)) == one.kind else one for one in self._findings
        ]
        self._open.clear()
        return list(mended.values())

    async def keep(self, table: RepairTable, *, ended: bool = False) -> None:
        """Write the figures down.

        Raises:
            LifecycleError: another process has taken this repair for left, and goes on with it.
        """
        samples = json.dumps([asdict(one) for one in self._findings])
        open_ = json.dumps([[*place, kind] for place, kind in self._open.items()])
        figures = Progress(
            self.after, self.scanned, json.dumps(self._found), json.dumps(self._mended), samples, open_, ended
        )
        if not await table.progress(self.begun.repair_id, self.begun.holder, figures):
            raise LifecycleError(
                "another process goes on with this repair: nothing was heard of it for too long", hint="store.repairs()"
            )

    def told(self) -> Repaired:
        """The figures so far."""
        return Repaired(
            id=self.begun.repair_id, reason=self.reason, dry_run=self.dry_run, scanned=self.scanned,
            found=dict(self._found), mended={kind: count for kind, count in self._mended.items() if count},
            findings=tuple(self._findings),
        )  # fmt: skip


def place_of(one: Difference) -> Place:
    """Where a difference is."""
    target = one.item.target
    return target.agent.text, target.key
