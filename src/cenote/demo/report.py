"""What the demo shows: a live view on a terminal, plain lines elsewhere, and one table at the end."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cenote.demo.audience import QUERY, QUESTION, Answer
from cenote.demo.verify import Loss

_PLAIN_EVERY_S = 2.0


@dataclass
class Figures:
    """The result of a run, as `--json` prints it; times in seconds, lags in milliseconds."""

    modules: int
    workers: int
    faults: bool
    embedder: str | None = None
    tasks: int = 0
    tasks_again: int = 0
    tasks_orphaned: int = 0
    late: int = 0
    messages: int = 0
    heard: int = 0
    facts: int = 0
    answers: list[Answer] = field(default_factory=list)
    agents: int = 0
    writes_acked: int = 0
    writes_in_doubt: int = 0
    shares_acked: int = 0
    shares_in_doubt: int = 0
    rows: int = 0
    coalesced: int = 0
    evicted: int = 0
    hydrated: int = 0
    recovered: int = 0
    kills: dict[str, int] = field(default_factory=lambda: {"worker": 0, "nats": 0, "postgres": 0})
    outage_s: dict[str, float] = field(default_factory=dict)
    lag_ms: dict[str, float | None] = field(default_factory=dict)
    lag_ms_before_faults: dict[str, float | None] = field(default_factory=dict)
    lost: int = 0
    losses: list[Loss] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    seconds: float = 0.0
    data_dir: str | None = None

    def judge(self) -> bool:
        """Nothing was lost, and everything that the demo wants to show did happen."""
        wanted = {"evicted": self.evicted, "hydrated": self.hydrated, "coalesced": self.coalesced}
        wanted |= {"shared": self.shares_acked, "tasks": self.tasks, "messages": self.messages, "facts": self.facts}
        if self.faults:
            wanted |= {"tasks taken from a dead worker": self.tasks_orphaned}
            wanted |= {"recovered": self.recovered} | {f"kill of {name}": count for name, count in self.kills.items()}
        self.missing = [name for name, count in wanted.items() if count <= 0]
        return not self.lost and not self.missing


class Show:
    """The live view. `say` adds a line that stays; `update` changes the figures."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._lines: list[Text] = []
        self._began = time.monotonic()
        self._printed = 0.0
        self._done, self._total, self._figures = 0, 1, ""
        self._live: Live | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show progress for as long as this is entered."""
        if self._quiet or not self._console.is_terminal:
            yield
            return
        with Live(self._view(), console=self._console, refresh_per_second=8, transient=True) as self._live:
            yield
        self._live = None
        for line in self._lines:
            self._print(line)

    def say(self, text: str, style: str = "") -> None:
        """A line that stays: what happened, and when."""
        line = Text.assemble((f"{time.monotonic() - self._began:5.1f} s  ", "dim"), (text, style))
        self._lines.append(line)
        if self._live is not None:
            self._live.update(self._view())
        elif not self._quiet:
            self._print(line)

    def update(self, done: int, total: int, figures: str) -> None:
        """How far the swarm is; on a pipe a plain line now and then."""
        self._done, self._total, self._figures = done, total, figures
        if self._live is not None:
            self._live.update(self._view())
        elif not self._quiet and time.monotonic() - self._printed > _PLAIN_EVERY_S:
            self._printed = time.monotonic()
            self._print(Text(f"{time.monotonic() - self._began:5.1f} s  {done}/{total} modules, {figures}"))

    def _print(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True)

    def _view(self) -> Group:
        if not self._figures:
            return Group(*self._lines)
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=self._total, completed=self._done, width=40), f"{self._done}/{self._total} modules"
        )
        return Group(*self._lines, bar, Text(self._figures, "dim"))


def finish(console: Console, figures: Figures, *, as_json: bool) -> None:
    """The closing table, or the same as JSON."""
    if as_json:
        losses = [loss._asdict() for loss in figures.losses]
        console.file.write(json.dumps(asdict(figures) | {"losses": losses}) + "\n")
        return
    console.print()
    console.print(Panel(_story(figures), border_style="red" if figures.lost or figures.missing else "green"))
    console.print(_table(figures))
    for loss in figures.losses[:10]:
        console.print(f"[red]lost[/] {loss.agent} {loss.key}: {loss.why}")
    if figures.missing:
        console.print(f"[red]did not happen, though it should have:[/] {', '.join(figures.missing)}")
    console.print(_answers(figures))
    console.print(_next(figures), soft_wrap=True, highlight=False)


def _story(figures: Figures) -> str:
    killed = "Kill -9 hit a worker, NATS and PostgreSQL on the way" if figures.faults else "Nobody was killed"
    end = "no acknowledged write was lost" if not figures.lost else f"{figures.lost} acknowledged writes were LOST"
    return (
        f"{figures.agents} agents in {figures.workers} worker processes read the Python standard library, a task for "
        f"each module, and wrote down what they found: {figures.writes_acked:,} acknowledged writes, "
        f"{figures.messages} messages, {figures.facts:,} facts. {killed}; [bold]{end}[/]."
    )


def _table(figures: Figures) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", style="cyan", no_wrap=True)
    table.add_column(style="dim")
    for name, value, meaning in _lines(figures):
        table.add_row(name, value, meaning)
    colour = "red" if figures.lost else "green"
    table.add_row(f"[{colour}]lost[/]", f"[bold {colour}]{figures.lost}[/]", "acked, but not in PostgreSQL")
    return table


def _lines(figures: Figures) -> Iterator[tuple[str, str, str]]:
    yield "agents", f"{figures.agents:,}", "one per module, each with its own state"
    yield "writes acked", f"{figures.writes_acked:,}", "survive kill -9 once put() has returned"
    yield "tasks done", f"{figures.tasks:,}", "each once, with its messages and facts"
    if figures.tasks_again:
        yield "begun again", f"{figures.tasks_again:,}", _again(figures)
    if figures.late:
        yield "too late", f"{figures.late:,}", "found their task in other hands"
    yield "messages", f"{figures.messages:,}", f"each there once; {figures.heard:,} heard, in order"
    yield "facts", f"{figures.facts:,}", "each there once"
    yield "shared", f"{figures.shares_acked:,}", "into one map and one set, by all workers"
    yield "rows", f"{figures.rows:,}", "keys in PostgreSQL, by plain asyncpg"
    yield "coalesced", f"{figures.coalesced:,}", "overtaken before PostgreSQL saw them"
    yield "evicted", f"{figures.evicted:,}", "left KV when idle; PostgreSQL has them"
    yield "hydrated", f"{figures.hydrated:,}", "came back to KV when read again"
    if figures.faults:
        kills = " · ".join(f"{name} {count}" for name, count in figures.kills.items())
        yield "kills", str(sum(figures.kills.values())), kills
        yield "recovered", str(figures.recovered), "agents resumed by another worker"
        for name, seconds in figures.outage_s.items():
            yield f"{name} away", f"{seconds:.1f} s", "until a new write was in PostgreSQL"
    calm = figures.lag_ms_before_faults or figures.lag_ms
    yield "lag", _ms(calm), "ack → commit: p50 / p95 / p99"
    if figures.faults:
        yield "with outages", _ms(figures.lag_ms), "the same over the whole run"


def _ms(lag: dict[str, float | None]) -> str:
    return " / ".join("–" if value is None else f"{value:,.0f}" for value in lag.values()) + " ms"


def _again(figures: Figures) -> str:
    lapsed = figures.tasks_again - figures.tasks_orphaned
    return f"killed worker {figures.tasks_orphaned} · lapsed leases {lapsed}"


def _answers(figures: Figures) -> Group:
    """What knowledge says, and how it was asked."""
    how = "by words and meaning" if figures.embedder else "by words; with cenote[embed] by meaning, too"
    asked = Text.assemble(f"\n{QUESTION}\n", (f"knowledge.search({QUERY!r}) {how}", "dim"))
    found = [(f"{answer.score:.3f}", answer.text) for answer in figures.answers] or [("–", "nobody has found that out")]
    lines = [Text.assemble((score, "cyan"), "  ", text, no_wrap=True, overflow="ellipsis") for score, text in found]
    return Group(asked, *lines)


def _next(figures: Figures) -> str:
    data = "was in a temporary directory, and is gone"
    if figures.data_dir is not None:
        data = f"is in {figures.data_dir}, namespace demo (PostgreSQL schema demo_agents)"
    return f"""
[dim]took[/]  {figures.seconds:.0f} s
[dim]data[/]  {data}
[dim]next[/]  `cenote up` starts servers that stay; then the quick start in the README
"""
