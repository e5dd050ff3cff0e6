"""The rows of the speed table, what counts as met, and how they are printed."""

import json
import statistics
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rich.table import Table

Verdict = Literal["met", "short", "aim met"]


class Bound(NamedTuple):
    """What a measured number is held against."""

    sign: Literal["≤", "≥"]
    number: float

    def holds(self, measured: float) -> bool:
        """Whether the number is on the right side."""
        return measured <= self.number if self.sign == "≤" else measured >= self.number


class Row(NamedTuple):
    """One line of the table."""

    what: str
    against: str
    unit: str
    at_least: Bound
    aim: Bound | None


@dataclass(frozen=True)
class Result:
    """What was measured for a row: one number for each round, in the row's unit, and circumstances worth knowing."""

    row: Row
    rounds: list[float]
    note: str = ""

    @property
    def median(self) -> float:
        """The number that is judged."""
        return statistics.median(self.rounds)

    @property
    def verdict(self) -> Verdict:
        """Whether the median is within the bounds."""
        if not self.row.at_least.holds(self.median):
            return "short"
        return "aim met" if self.row.aim is not None and self.row.aim.holds(self.median) else "met"

    @property
    def text(self) -> str:
        """The median, and the range where there was more than one round."""
        text = f"{_number(self.median)} {self.row.unit}"
        if len(self.rounds) > 1:
            text += f"  ({_number(min(self.rounds))} – {_number(max(self.rounds))})"
        return text


def shown(results: list[Result], *, quick: bool, took_s: float) -> Table:
    """The table for people; fits 80 columns."""
    title = f"speed, {'quick: fewer rounds, smaller sizes, ' if quick else ''}{took_s:.0f} s"
    table = Table(title=title, caption="median of the rounds (range)", show_lines=True)
    for name in ("what, against what", "measured", "at least", "aim", "verdict"):
        table.add_column(name, no_wrap=name in ("at least", "aim", "verdict"))
    for result in results:
        row = result.row
        style = "red" if result.verdict == "short" else "green"
        table.add_row(
            row.what + (f"\n[dim]{row.against}[/dim]" if row.against else ""),
            result.text + (f"\n[dim]{result.note}[/dim]" if result.note else ""),
            _bound(row.at_least),
            "" if row.aim is None else _bound(row.aim),
            f"[{style}]{result.verdict}[/{style}]",
        )
    return table


def summary(results: list[Result]) -> str:
    """One line: how many rows are short, and which."""
    short = [result.row.what for result in results if result.verdict == "short"]
    if not short:
        return f"all {len(results)} rows are within their bounds"
    return f"{len(short)} of {len(results)} rows are short: {'; '.join(short)}"


def as_json_text(results: list[Result], *, quick: bool, took_s: float) -> str:
    """The table for programs."""
    rows = [
        {
            "what": result.row.what,
            "against": result.row.against,
            "unit": result.row.unit,
            "measured": {"median": result.median, "min": min(result.rounds), "max": max(result.rounds)},
            "rounds": len(result.rounds),
            "at_least": result.row.at_least._asdict(),
            "aim": result.row.aim and result.row.aim._asdict(),
            "verdict": result.verdict,
            "note": result.note,
        }
        for result in results
    ]
    return json.dumps({"quick": quick, "took_s": round(took_s, 1), "rows": rows})


def _number(number: float) -> str:
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"


def _bound(bound: Bound) -> str:
    return f"{bound.sign} {bound.number:g}"
