"""Run one collector through the real supervisor and keep everything that comes of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from pmforensics.collect.base import Collector
from pmforensics.collect.examine import read_target_json
from pmforensics.collect.pin import pin
from pmforensics.collect.run import run
from pmforensics.collect.worker import Stop
from pmforensics.model.capture import (
    MIB,
    Artifact,
    Ask,
    CollectorEnded,
    Fact,
    Gap,
    Settlement,
    Touch,
)
from pmforensics.model.process import Target


class _First:
    """Applies always and collects nothing: `run` examines the target after its first collector."""

    name = "first"
    question = ""
    limit_s = 1.0
    stops = False
    opt_in = False

    def applies_to(self, target: Target) -> bool:
        return True

    def collect(self, target: Target, host: object) -> tuple[()]:
        return ()


@dataclass
class Collected:
    """What came of it. `artifacts` are by path, bytes joined; `order` is the order of arrival."""

    artifacts: dict[str, bytes] = field(default_factory=dict)
    settlements: dict[str, Settlement] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    touches: list[Touch] = field(default_factory=list)
    target: Target | None = None
    ended: CollectorEnded | None = None
    seconds: float = 0.0

    @property
    def runs_again(self) -> bool | None:
        return self.ended.runs_again if self.ended else None

    def gap(self, code: str) -> Gap:
        """The one gap with this code."""
        found = [gap for gap in self.gaps if gap.reason.code == code]
        assert len(found) == 1, f"wanted one gap {code}, there are {[gap.reason for gap in self.gaps]}"
        return found[0]


def collect_one(
    collector: Collector,
    pid: int,
    tmp_path: Path,
    *,
    limit_s: float = 20.0,
    floor_bytes: int = MIB,
    stop: Stop | None = None,
) -> Collected:
    """Pin, examine, collect; every body read to its end, spooled files read and removed."""
    spool = tmp_path / "spool"
    spool.mkdir(mode=0o700, exist_ok=True)
    collected = Collected()
    started = time.monotonic()
    ask = Ask(pid=pid, budget_s=limit_s / 0.6 + 5.0, include=frozenset({collector.name}))
    with pin(pid) as held:
        items = run(
            ask,
            (_First(), collector),  # type: ignore[arg-type]
            held,
            spool_root=spool,
            floor_bytes=floor_bytes,
            started=started,
            stop=stop or Stop(),
        )
        for item in items:
            match item:
                case Artifact():
                    if isinstance(item.body, Path):
                        body = item.body.read_bytes()
                    elif isinstance(item.body, bytes):
                        body = item.body
                    else:
                        body = b"".join(item.body)
                    collected.artifacts[item.path] = body
                    collected.settlements[item.path] = item.settled()
                    collected.sources[item.path] = item.source
                    collected.order.append(item.path)
                case Gap():
                    collected.gaps.append(item)
                case Touch():
                    collected.touches.append(item)
                case Fact(name="target"):
                    collected.target = read_target_json(item.value)
                case CollectorEnded(name=name) if name == collector.name:
                    collected.ended = item
    collected.seconds = time.monotonic() - started
    return collected
