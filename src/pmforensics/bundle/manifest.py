"""evidence.json: what the journal says, put in order. Pure: records in, one JSON object out."""

from __future__ import annotations

from typing import Any

from pmforensics.bundle.journal import Record
from pmforensics.model.capture import Json, Outcome

SCHEMA_ID = "pmf/evidence/1"
GOOD = frozenset({Outcome.COLLECTED.value, Outcome.EMPTY.value})

_ARTIFACT_KEYS = (
    "path", "collector", "outcome", "reason", "source", "media_type", "bytes", "stored_bytes", "sha256", "encoding",
    "content_sha256", "at", "seconds", "pause", "facts",
)  # fmt: skip


def build_manifest(records: list[Record]) -> dict[str, Json]:
    """
    The manifest of a bundle from its journal.

    The first record is `open`; the last decisive one is `end`. Every artifact that is not whole appears among the
    gaps too: whoever reads only the gaps must not believe that all is well.
    """
    opening = next((record for record in records if record["event"] == "open"), {})
    ending: Record = next((record for record in reversed(records) if record["event"] == "end"), {})
    facts = {record["name"]: record["value"] for record in records if record["event"] == "fact"}
    artifacts: list[Record] = [
        {key: record.get(key) for key in _ARTIFACT_KEYS} for record in live_artifacts(records).values()
    ]
    gaps = [
        {key: record.get(key) for key in ("wanted", "collector", "outcome", "reason", "question", "at")}
        for record in records
        if record["event"] == "gap"
    ]
    gaps += [_gap_of_artifact(artifact) for artifact in artifacts if artifact["outcome"] not in GOOD]
    clocks = {
        artifact["collector"]: artifact["facts"]
        for artifact in artifacts
        if artifact["collector"] in ("clock", "clock_again")
    }
    ended_by = ending.get("ended_by", "killed")
    return {
        "schema": SCHEMA_ID,
        "completeness": "complete" if not gaps and ended_by == "done" else "incomplete",
        "capture": {
            "id": opening.get("id"),
            "service": opening.get("service"),
            "incident": opening.get("incident"),
            "host": opening.get("host"),
            "tool": opening.get("tool"),
            "started_at": opening.get("started_at"),
            "ended_at": ending.get("at"),
            "ended_by": ended_by,
            "seconds": ending.get("seconds"),
            "asked": opening.get("asked"),
            "forced": opening.get("forced", False),
        },
        "target": {**(facts.get("target") or opening.get("target") or {}), "end": facts.get("target_end")},
        "clock": {
            "start": {**opening.get("clock", {}), "sync": (clocks.get("clock") or {}).get("sync")},
            "end": {**ending.get("clock", {}), "sync": (clocks.get("clock_again") or {}).get("sync")},
        },
        "volume": {**opening.get("volume", {}), "compression": facts.get("compression")},
        "collectors": _collectors(records),
        "artifacts": artifacts,
        "gaps": gaps,
        "not_asked": opening.get("not_asked", []),
        "custody_head": ending.get("custody_head"),
    }


def live_artifacts(records: list[Record]) -> dict[str, Record]:
    """The artifacts that are there, by path: the last record of a path counts, `lost` takes it back."""
    live: dict[str, Record] = {}
    for record in records:
        if record["event"] == "artifact":
            live[record["path"]] = record
        elif record["event"] == "lost":
            live.pop(record["path"], None)
    return live


def _gap_of_artifact(artifact: dict[str, Any]) -> dict[str, Json]:
    return {
        "wanted": artifact["path"],
        "collector": artifact["collector"],
        "outcome": artifact["outcome"],
        "reason": artifact["reason"] or {"code": artifact["outcome"], "says": "it is not whole", "next_step": ""},
        "question": "",
        "at": artifact["at"],
    }


def _collectors(records: list[Record]) -> list[Json]:
    """One row per collector: its outcome, time and the longest standstill that it caused."""
    rows: dict[str, dict[str, Json]] = {}
    pauses: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["event"] == "collector":
            rows[record["name"]] = {
                "name": record["name"],
                "limit_s": record.get("limit_s"),
                "outcome": Outcome.LATE.value,
                "seconds": None,
                "runs_again": None,
            }
        elif record["event"] == "artifact" and record.get("pause"):
            pauses.setdefault(record["collector"], []).append(record["pause"])
        elif record["event"] == "collector-end" and record["name"] in rows:
            row = rows[record["name"]]
            row.update({key: record.get(key) for key in ("outcome", "seconds", "runs_again")})
    for name, row in rows.items():
        longest = max(pauses.get(name, []), key=lambda pause: float(pause["seconds"]), default=None)
        row["pause"] = longest
    return list(rows.values())
