"""`doctor`: what is wrong, and what to type. It looks at everything and changes nothing."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import typer

from cenote.cli.findings import Finding, Grade
from cenote.cli.options import OPERATION, Common, command
from cenote.cli.output import coloured, print_json, printable

if TYPE_CHECKING:
    from cenote.config import Config

app = typer.Typer()

_COLOURS = {Grade.OK: "green", Grade.SKIPPED: "dim", Grade.WARNING: "yellow", Grade.FAILED: "red"}


@command(app, "doctor", panel=OPERATION)
def doctor(common: Common) -> int:
    """Look at everything cenote stands on, and say what is wrong and what to type.

    Starts nothing and changes nothing. Exit code 0 all well, 1 warnings, 2 something does not work.
    """
    from cenote.cli.reach import wait

    findings = wait(_examine(common.load(flush__enabled=False), show=not common.json))
    grades = [finding.grade for finding in findings]
    verdict = next((grade for grade in (Grade.FAILED, Grade.WARNING) if grade in grades), Grade.OK)
    if common.json:
        checks = [finding._asdict() | {"grade": finding.grade.value} for finding in findings]
        print_json({"verdict": verdict.value, "checks": checks})
    else:
        more = "" if verdict is Grade.OK else "; what a line means: cenote explain NAME"
        print(f"\n{grades.count(Grade.FAILED)} failed, {grades.count(Grade.WARNING)} warnings{more}")
    return {Grade.FAILED: 2, Grade.WARNING: 1}.get(verdict, 0)


async def _examine(config: "Config", *, show: bool) -> list[Finding]:
    findings = []
    async for finding in _findings(config):
        findings.append(finding)
        if show:
            _print(finding)
    return findings


def _print(finding: Finding) -> None:
    grade = coloured(f"{finding.grade.value:8}", _COLOURS[finding.grade])
    print(f"{grade} {finding.name:13} {printable(finding.found)}", flush=True)
    if finding.type is not None:
        print(f"{'':22} → {printable(finding.type)}", flush=True)


async def _findings(config: "Config") -> AsyncIterator[Finding]:
    from cenote.cli import examine_machine
    from cenote.cli.examine_kv import ExamineKv
    from cenote.cli.examine_sql import ExamineSql
    from cenote.cli.examine_store import compare

    for finding in examine_machine.findings(config):
        yield finding
    reachable = examine_machine.with_addresses(config)
    kv, sql = ExamineKv(reachable), ExamineSql(reachable)
    async for finding in kv.findings():
        yield finding
    async for finding in sql.findings():
        yield finding
    await kv.look_again()
    for finding in compare(kv.facts, sql.facts):
        yield finding
