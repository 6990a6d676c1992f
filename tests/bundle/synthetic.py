"""Bundles made through the real writer and seal, of items made up here: no target, no collectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pmforensics.bundle.seal import Seal, seal
from pmforensics.bundle.volume import Volume, read_volume
from pmforensics.bundle.write import BundleWriter
from pmforensics.model.capture import (
    MIB,
    Artifact,
    CollectorEnded,
    CollectorStarted,
    Fact,
    Gap,
    Item,
    Json,
    Outcome,
    Reason,
    Touch,
)

AT = datetime(2026, 11, 20, 13, 15, tzinfo=UTC)
CLOCK: dict[str, Json] = {"wall_ns": 1_795_180_500_000_000_000, "monotonic_ns": 1, "boottime_ns": 1, "boot_id": "b"}


def opening(plan: Iterable[str] = ("first", "second"), **changed: Json) -> dict[str, Json]:
    """The first record of a journal."""
    return {
        "id": "1f3a9c02",
        "service": "checkout",
        "incident": None,
        "host": {"name": "web-1", "kernel": "6.1", "machine": "x86_64"},
        "tool": {"name": "pmf", "version": "0.1.0", "python": "3.11"},
        "started_at": "2026-11-20T13:15:00.000000Z",
        "asked": {"budget_s": 25.0},
        "forced": False,
        "target": {"pid": 4711, "start_ticks": 12345, "comm": "checkout", "state": "S"},
        "clock": CLOCK,
        "volume": {"fs_type": "ext4", "mount_point": "/", "persistent": True, "fleeting_because": None},
        "plan": list(plan),
        "not_asked": [],
        **changed,
    }


def writer(
    evidence: Path,
    *,
    service: str = "checkout",
    host: str = "web-1",
    floor_bytes: int = MIB,
    hash_until: float = math.inf,
    **changed: Json,
) -> BundleWriter:
    """A writer at its beginning."""
    volume: Volume = replace(read_volume(evidence), floor_bytes=floor_bytes)
    return BundleWriter.create(
        evidence,
        volume,
        service=service,
        host=host,
        capture_id="1f3a9c02",
        at=AT,
        opening=opening(service=service, **changed),
        hash_until=hash_until,
    )


def finish(made: BundleWriter, ended_by: str = "done") -> Seal:
    """As the capture ends."""
    made.drop_spool()
    return seal(made.folder, made.journal, ended_by=ended_by, seconds=1.5, clock=CLOCK)


def bundle(
    evidence: Path,
    items: Iterable[Item] | None = None,
    *,
    hook: Callable[[BundleWriter], None] | None = None,
    **changed: Json,
) -> Seal:
    """A sealed bundle of these items; of `whole()` when none are given."""
    made = writer(evidence, **changed)
    for item in whole() if items is None else items:
        made.add(item)
    if hook is not None:
        hook(made)
    return finish(made)


def collector(name: str, *inside: Item, outcome: Outcome = Outcome.COLLECTED) -> list[Item]:
    """The items of one collector from its start to its end."""
    return [CollectorStarted(name, 5.0), *inside, CollectorEnded(name, outcome, 0.25)]


def artifact(path: str = "one.txt", body: bytes | Iterable[bytes] = b"evidence\n", **changed: object) -> Artifact:
    """One artifact."""
    return Artifact(path, body, f"/proc/4711/{path}", **changed)  # type: ignore[arg-type]


GAP = Gap(
    "second/stacks", Outcome.DENIED, Reason("access-denied", "not permitted", "Run pmf as root."), "Where was it?"
)


def whole() -> list[Item]:
    """A capture that lacks nothing: two collectors, one folder below, an empty file, a touch, a fact."""
    return [
        *collector(
            "first",
            Touch("read", "/proc/4711/status", 0.001, "ok"),
            artifact("status", b"Name: checkout\n"),
            artifact("net/tcp", b"sl local_address\n" * 100),
        ),
        Fact("target", {"pid": 4711, "start_ticks": 12345, "comm": "checkout", "argv": ["checkout"]}),
        *collector(
            "second",
            artifact("chunks.bin", iter([b"a" * 1000, b"b" * 1000])),
            artifact("empty", b"", outcome=Outcome.EMPTY),
        ),
        Fact("target_end", {"alive": True, "was_stopped": False}),
    ]


def with_gap() -> list[Item]:
    """A capture with one recorded gap."""
    return [*collector("first", artifact("status")), *collector("second", GAP, outcome=Outcome.DENIED)]
