"""`pmf show`: what is in a bundle, what is missing, the clock, the identity of the target."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pmforensics.bundle.layout import EVIDENCE
from pmforensics.bundle.read import read_bundle
from pmforensics.bundle.seal import Seal, seal_digest
from pmforensics.cli.terminal import (
    pause_text,
    plain,
    render_gaps,
    render_table,
    seconds_text,
    size_text,
    strong,
    wrap,
)
from pmforensics.errors import BundleBroken

COLLAPSE_FROM = 5  # whole files of one collector that a table shows as a single row


@click.command("show", short_help="What is in a bundle, and what is missing.")
@click.argument("bundle", type=click.Path(readable=False, path_type=Path))
@click.option("--all", "every", is_flag=True, help="One row per file, also where a collector has many.")
@click.option("--json", "as_json", is_flag=True, help="Print the bundle's manifest as JSON.")
def command(bundle: Path, every: bool, as_json: bool) -> None:
    """
    What is in a bundle, and what is missing.

    Shows what the bundle says; `pmf check` tells whether it is what was sealed.
    """
    evidence = read_bundle(bundle).evidence
    digest = seal_digest(bundle)
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle), "seal": f"sha256:{digest}", "evidence": evidence}, indent=1))
        return
    try:
        text = render_bundle(evidence, digest, every=every)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError):
        # Whoever can change a bundle can write any JSON into it.
        raise BundleBroken(
            f"{bundle / EVIDENCE} is not a manifest that pmf writes", hint="pmf check tells what was altered."
        ) from None
    click.echo(text)


def render_bundle(evidence: dict[str, Any], digest: str, *, every: bool) -> str:
    """All that `pmf show` prints."""
    capture, target = evidence["capture"], evidence["target"]
    parts = [strong(f"{plain(capture['service'])}: {headline(evidence)}"), ""]
    for name, value in (*_identity(capture, target), *_clock(evidence)):
        parts.append(f"{name:<10} {wrap(value, ' ' * 11).lstrip()}")
    parts += ["", render_artifacts(evidence, every=every)]
    if evidence["gaps"]:
        parts += ["", strong("Missing"), render_gaps(evidence["gaps"])]
    if evidence["not_asked"]:
        parts += ["", wrap(f"Not asked for: {', '.join(evidence['not_asked'])}.", "")]
    return "\n".join([*parts, "", f"Seal sha256:{digest}"])


def headline(evidence: dict[str, Any]) -> str:
    """The answer in one line."""
    gaps = len(evidence["gaps"])
    files = len(evidence["artifacts"])
    ended = evidence["capture"]["ended_by"]
    text = f"{files} files saved and sealed, nothing missing"
    if gaps:
        text = f"{files} files saved and sealed, {gaps} gap{'s' if gaps > 1 else ''}"
    return text if ended == "done" else f"{text}; the capture was cut short ({plain(ended)})"


def render_capture(sealed: Seal) -> str:
    """What `pmf capture` says at its end."""
    evidence: dict[str, Any] = sealed.evidence
    parts = [strong(headline(evidence)[:1].upper() + headline(evidence)[1:] + "."), f"  {sealed.folder}", ""]
    parts.append(render_artifacts(evidence, every=False))
    if evidence["gaps"]:
        parts += ["", strong("Missing"), render_gaps(evidence["gaps"])]
    parts += ["", wrap(_afterwards(evidence), ""), f"Seal sha256:{sealed.digest}"]
    return "\n".join(parts)


def render_artifacts(evidence: dict[str, Any], *, every: bool) -> str:
    """The table: artifact, outcome, size, seconds, pause."""
    by_collector: dict[str, list[dict[str, Any]]] = {}
    for artifact in evidence["artifacts"]:
        by_collector.setdefault(artifact["path"].split("/")[1], []).append(artifact)
    rows: list[Sequence[str]] = []
    for folder, artifacts in by_collector.items():
        whole = [artifact for artifact in artifacts if artifact["outcome"] in ("collected", "empty")]
        if every or len(whole) < COLLAPSE_FROM:
            whole = []
        if whole:
            rows.append(
                (
                    f"{plain(folder)}/ ({len(whole)} files)",
                    "collected",
                    size_text(sum(artifact["stored_bytes"] for artifact in whole)),
                    seconds_text(sum(artifact["seconds"] or 0.0 for artifact in whole)),
                    "-",
                )
            )
        rows += [
            (
                plain(artifact["path"].removeprefix("data/")),
                plain(artifact["outcome"]),
                size_text(artifact["stored_bytes"]),
                seconds_text(artifact["seconds"]),
                pause_text(artifact["pause"]),
            )
            for artifact in artifacts
            if artifact not in whole
        ]
    return render_table(("ARTIFACT", "OUTCOME", "SIZE", "TIME", "PAUSE"), rows, right=frozenset({2, 3, 4}))


def _afterwards(evidence: dict[str, Any]) -> str:
    """What became of the target."""
    end = evidence["target"].get("end") or {}
    pauses = [row["pause"] for row in evidence["artifacts"] if row["pause"]]
    longest = max(pauses, key=lambda pause: pause["seconds"], default=None)
    who = f"Process {evidence['target'].get('pid')}"
    if not end.get("alive", True):
        return f"{who} exited during the capture."
    still = f"; its longest standstill was {pause_text(longest)}" if longest else "; it was never stopped"
    held = any(row["runs_again"] is False for row in evidence["collectors"])
    if held:
        return f"{who} may still be stopped: see Missing."
    return f"{who} {'is stopped, as before' if end.get('was_stopped') else 'runs on'}{still}."


def _identity(capture: dict[str, Any], target: dict[str, Any]) -> list[tuple[str, str]]:
    argv = " ".join(target.get("argv") or [])
    place = [
        f"container {target['container_id'][:12]}" if target.get("container_id") else "",
        f"pod {target['pod_uid']}" if target.get("pod_uid") else "",
        f"unit {target['unit']}" if target.get("unit") else "",
    ]
    rows = [
        ("Process", f"{target.get('pid')} {target.get('comm') or ''} on {capture['host']['name']}"),
        ("Command", argv[:500] or target.get("exe") or "unknown"),
        ("Runtime", ", ".join(target.get("runtimes") or ["unknown"])),
        ("Place", ", ".join(filter(None, place)) or "no container, no unit"),
    ]
    if capture.get("incident"):
        rows.append(("Incident", str(capture["incident"])))
    return rows


def _clock(evidence: dict[str, Any]) -> list[tuple[str, str]]:
    capture, clock = evidence["capture"], evidence["clock"]
    start, end = clock["start"], clock["end"]
    sync = (start.get("sync") or {}).get("synchronized")
    said = {True: "synchronized", False: "NOT synchronized", None: "synchronization unknown"}[sync]
    rows = [
        ("Captured", f"{capture['started_at']} ({seconds_text(capture['seconds'])})"),
        ("Clock", f"{said}{_error_text(start.get('sync'))}, boot {str(start.get('boot_id'))[:8]}"),
    ]
    if start.get("wall_ns") and end.get("wall_ns"):
        drift_ns = (end["wall_ns"] - start["wall_ns"]) - (end["monotonic_ns"] - start["monotonic_ns"])
        if abs(drift_ns) > 1_000_000:
            rows.append(("", f"the wall clock was stepped by {drift_ns / 1e9:+.3f} s during the capture"))
    return rows


def _error_text(sync: dict[str, Any] | None) -> str:
    return f" (error at most {seconds_text(sync['maximum_error_s'])})" if sync and sync["synchronized"] else ""
