"""`pmf verify DUMP.hprof`: what the heap says of its JVM, and jars held against its classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from pmforensics.cli.errors import EXIT_INCOMPLETE, EXIT_NO
from pmforensics.cli.terminal import paint, plain, strong, wrap
from pmforensics.verify.heap import HeapReport, verify_heap_dump
from pmforensics.verify.verdict import Verdict

TOLD = ("java.version", "java.vm.name", "java.vm.version", "java.vm.vendor", "os.name", "os.arch", "sun.java.command")


def verify_heap(dump: Path, candidates: Sequence[Path], *, as_json: bool) -> int:
    """Read, hold, print; exit 1 when a jar contradicts the heap, else 3: a heap dump proves no build."""
    report = verify_heap_dump(dump, candidates)
    click.echo(json.dumps(report_json(report), indent=1) if as_json else render(report))
    return EXIT_NO if report.verdict is Verdict.MISMATCH else EXIT_INCOMPLETE


def report_json(report: HeapReport) -> dict[str, object]:
    """The report, for a pipeline."""
    summary = report.summary
    return {
        "dump": str(report.dump),
        "format": "hprof",
        "verdict": report.verdict.value,
        "structure": summary.structure.shape.value,
        "dumped_at": summary.dumped_at.isoformat() if summary.dumped_at else None,
        "stated_in_the_heap": {
            one.name: {"value": one.value, "found": one.found.value, "offset": one.offset} for one in summary.jvm
        },
        "classes": len(summary.classes),
        "jars": [
            {
                "jar": str(row.jar),
                "verdict": row.verdict.value,
                "code": row.code,
                "says": row.says,
                "classes": row.classes,
                "in_heap": row.in_heap,
                "same": row.same,
                "unknown": row.unknown,
                "differ": list(row.differ),
                "lost": list(row.lost),
            }
            for row in report.rows
        ],
        "lost": list(summary.lost),
        "conflicts": list(summary.conflicts),
    }


def render(report: HeapReport) -> str:
    """Verdict first, contradictions in full, then the JVM in the heap's own words."""
    summary = report.summary
    mismatch = report.verdict is Verdict.MISMATCH
    parts = [strong(paint(report.verdict.value, "no" if mismatch else "limited"))]
    if mismatch:
        parts.append(wrap("DO NOT READ THIS HEAP with the mismatched jars: its objects have other fields.", ""))
    else:
        parts.append(wrap("A heap dump carries no build ID: nothing is wrong, and nothing is proven.", ""))
    for row in report.rows:
        parts += ["", paint(f"{row.verdict.value}  {plain(row.jar)}", "no" if row.differ else "")]
        parts.append(wrap(row.says + ".", "  "))
        parts += [wrap(sentence, "    ") for sentence in row.differ[:10]]
        if len(row.differ) > 10:
            parts.append(f"    and {len(row.differ) - 10} more; --json lists them")
        parts += [wrap(sentence, "  ") for sentence in row.lost[:3]]
    stated = {one.name: one for one in summary.jvm}
    parts += ["", strong("Stated in the heap (no proof: a program can change it)")]
    parts += [wrap(f"{name:<17} {plain(stated[name].value)}", "  ") for name in TOLD if name in stated]
    if not stated:
        parts.append("  nothing about its JVM")
    parts.append("")
    parts += [wrap(sentence, "") for sentence in (*summary.conflicts, *summary.lost)]
    parts.append(wrap(f"Coverage: {len(summary.classes):,} classes; the dump is {summary.structure.shape.value}.", ""))
    return "\n".join(parts)
