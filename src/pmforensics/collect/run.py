"""Run the collectors inside the budget: one outcome each, and one failure never stops the rest."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pmforensics.collect.base import Collector, Host
from pmforensics.collect.guard import Guard
from pmforensics.collect.pin import STOPPED, Pin
from pmforensics.collect.wire import DATA, Sender, read_gap, read_settlement, read_touch
from pmforensics.collect.worker import Stop, Worker, start, start_collector
from pmforensics.model.capture import (
    MIB,
    Artifact,
    Ask,
    CollectorEnded,
    CollectorStarted,
    Fact,
    Gap,
    Item,
    Outcome,
    Reason,
    Settlement,
    Touch,
)
from pmforensics.model.process import Target

EXAMINE_LIMIT_S = 3.0
SHARE = 0.6  # of what is left, for one collector: whatever hangs, the next ones still get their turn
LEAST_S = 0.05  # with less than this left, starting a collector only produces a torn artifact
# What one collector may write into the journal, which is read back whole for the seal. /proc of 5,000 threads is
# 30,000 touches and 3.5 MB.
MAX_TALK_BYTES = 4 * MIB
MAX_ARTIFACTS = 10_000


def reserve_s(budget_s: float) -> float:
    """What is kept back for sealing: a tenth of the budget, between one and five seconds, never over half."""
    return min(max(budget_s / 10, 1.0), 5.0, budget_s / 2)


@dataclass(slots=True)
class _Talk:
    """What a collector may still say, and how often it said more: counted then, not kept."""

    left_bytes: int = MAX_TALK_BYTES
    artifacts: int = 0
    touches_unheard: int = 0
    gaps_unheard: int = 0

    def hears(self, length_bytes: int) -> bool:
        """Whether a message of this length is kept."""
        self.left_bytes -= length_bytes
        return self.left_bytes > 0

    def touch(self, message: dict[str, Any], length_bytes: int) -> Iterator[Touch]:
        """The touch, if it is kept."""
        if self.hears(length_bytes):
            yield read_touch(message)
        else:
            self.touches_unheard += 1

    def gap(self, message: dict[str, Any], length_bytes: int) -> Iterator[Gap]:
        """The gap, if it is kept."""
        if self.hears(length_bytes):
            yield read_gap(message)
        else:
            self.gaps_unheard += 1

    def rest(self, name: str) -> Iterator[Item]:
        """What stands for all that was not kept."""
        if self.touches_unheard:
            yield Touch("more", f"{self.touches_unheard:,} further touches, not listed", 0.0, "ok")
        if self.gaps_unheard:
            says = f"{self.gaps_unheard:,} further gaps, not listed: {name} reported more than a bundle holds"
            yield Gap(name, Outcome.FAILED, Reason("too-many", says))


@dataclass(slots=True)
class _Body:
    """
    The bytes of the artifact that a worker is sending; knows the settlement once they are through.

    ahead   the message that came where the settlement belongs: the worker broke off
    """

    worker: Worker
    talk: _Talk
    settlement: Settlement | None = None
    touches: list[Touch] = field(default_factory=list)
    ahead: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[bytes]:
        while True:
            kind, length = self.worker.frame()
            if kind == DATA:
                yield from self.worker.data(length)
                continue
            message = self.worker.message(length) if kind else None
            if message is None:
                self.settlement = _torn(self.worker)
                return
            if message["kind"] == "settled":
                self.settlement = read_settlement(message)
                return
            if message["kind"] != "touch":
                self.settlement, self.ahead = _torn(self.worker), message
                return
            self.touches.extend(self.talk.touch(message, length))

    def settle(self) -> Settlement:
        """As the worker said, or what its silence means."""
        return self.settlement if self.settlement is not None else _torn(self.worker)


def _torn(worker: Worker) -> Settlement:
    return Settlement(Outcome.PARTIAL, _why_ended(worker))


def _why_ended(worker: Worker) -> Reason:
    if worker.cut == "deadline":
        return Reason("deadline-passed", "its share of the budget was spent", "Give more time: --budget")
    if worker.cut == "volume":
        return Reason("volume-full", "the evidence volume took no more of it", "Give a larger volume with --evidence.")
    if worker.cut is not None:
        return Reason("interrupted", f"the capture was told to end ({worker.cut})")
    if worker.early:
        return Reason("collector-failed", "an error ended the collector before it was finished")
    return Reason("collector-died", "the collector's process ended without a word")


def supervise(name: str, worker: Worker, spool: Path) -> Iterator[Item]:
    """
    Everything that a worker sends, as items, until it is done, dead, or cut off.

    The consumer must exhaust an artifact's body, or stop for good: a body left unread ends the worker.
    """
    talk = _Talk()
    ahead: dict[str, Any] | None = None
    while True:
        if ahead is None:
            kind, length = worker.frame()
            if kind == DATA:
                for _ in worker.data(length):  # bytes without an open artifact: only after a broken one
                    pass
                continue
            message = worker.message(length) if kind else None
        else:
            message, ahead = ahead, None
        if message is None:
            break
        match message["kind"]:
            case "done":
                worker.done = True
                break
            case "touch":
                yield from talk.touch(message, length)
            case "gap":
                yield from talk.gap(message, length)
            case "fact":
                yield Fact(message["name"], message["value"])
            case "early":
                worker.early = True
            case "error" | "bug":
                worker.early = True
                yield Gap(
                    name,
                    Outcome.FAILED,
                    Reason(
                        message.get("code", "bug"),
                        message["says"],
                        message.get("hint", "") or "Please report this, with the journal of the bundle.",
                    ),
                )
                if "trace" in message:
                    yield Touch("bug", message["trace"], 0.0, "failed")
            case "artifact":
                talk.artifacts += 1
                if talk.artifacts > MAX_ARTIFACTS:
                    worker.cut = "too many artifacts"
                    worker.end()
                    break
                ahead = yield from _artifact(name, message, worker, spool, talk)
    yield from talk.rest(name)
    if not worker.done:
        outcome = {None: Outcome.FAILED, "volume": Outcome.REFUSED}.get(worker.cut, Outcome.LATE)
        yield Gap(name, outcome, _why_ended(worker))


def _artifact(
    name: str, message: dict[str, Any], worker: Worker, spool: Path, talk: _Talk
) -> Generator[Item, None, dict[str, Any] | None]:
    """The artifact that this message begins; returns a message that was read too far."""
    body = _Body(worker, talk)
    spooled = message["spooled"]
    if spooled is not None:
        for _ in body:  # a spooled file sends no data, only its settlement
            pass
    yield Artifact(
        path=message["path"],
        body=spool / Path(spooled).name if spooled is not None else body,
        source=message["source"],
        media_type=message["media_type"],
        bulk=message["bulk"],
        settle=body.settle,
    )
    if body.settlement is None and spooled is None:
        # The writer gave up (the volume is full): nothing that follows could be kept either.
        worker.cut = worker.cut or "volume"
        worker.end()
    yield from body.touches
    return body.ahead


def run(
    ask: Ask,
    collectors: Iterable[Collector],
    pin: Pin,
    *,
    spool_root: Path,
    floor_bytes: int,
    started: float,
    stop: Stop,
) -> Iterator[Item]:
    """
    Run `collectors` in their order and yield what comes of each.

    started   time of the monotonic clock from which the budget counts
    stop      asked from outside (a signal): the running collector is cut off, the others become gaps
    """
    deadline = started + ask.budget_s - reserve_s(ask.budget_s)
    was_stopped = pin.state in STOPPED
    target = Target(pin.pid, pin.start_ticks, pin.state, pin.comm)
    examined = False
    guard = Guard(pin)
    try:
        for collector in collectors:
            name = collector.name
            if (collector.opt_in and name not in ask.include) or name in ask.exclude:
                continue
            if examined and not collector.applies_to(target):
                continue
            left_s = deadline - time.monotonic()
            if stop.why is not None or left_s < LEAST_S:
                yield _not_reached(collector, stop)
                continue
            limit_s = min(collector.limit_s, left_s if left_s < 1.0 else max(left_s * SHARE, 0.5))
            yield CollectorStarted(name, limit_s)
            yield from _run_one(collector, pin, target, limit_s, spool_root, floor_bytes, stop, guard)
            if not examined:
                limit_s = max(LEAST_S, min(EXAMINE_LIMIT_S, deadline - time.monotonic()))
                target = yield from _examine(pin, target, limit_s, spool_root, floor_bytes, stop, guard)
                examined = True
    finally:
        guard.close()
        alive = pin.is_alive()
    yield Fact("target_end", {"alive": alive, "was_stopped": was_stopped})
    if not alive and pin.state != "Z":
        yield Gap(
            "the target, alive to the end",
            Outcome.PARTIAL,
            Reason("target-gone", "the target exited during the capture; what came after is from its remains"),
        )


def _not_reached(collector: Collector, stop: Stop) -> Gap:
    if stop.why is not None:
        why = Reason("interrupted", f"the capture was told to end first ({stop.why})")
    else:
        why = Reason("deadline-passed", "the budget was spent before its turn", "Give more time: --budget")
    return Gap(collector.name, Outcome.LATE, why, collector.question)


def _run_one(
    collector: Collector,
    pin: Pin,
    target: Target,
    limit_s: float,
    spool_root: Path,
    floor_bytes: int,
    stop: Stop,
    guard: Guard,
) -> Iterator[Item]:
    name = collector.name
    begun = time.monotonic()
    spool = spool_root / name
    with suppress(OSError):  # a full or vanished volume: whoever needs the folder says so, the others do not care
        spool.mkdir(mode=0o700, exist_ok=True)
    worker = start_collector(collector, pin, target, limit_s=limit_s, spool=spool, floor_bytes=floor_bytes, stop=stop)
    guard.watch(worker.pid, stops=collector.stops)
    outcome = Outcome.EMPTY
    try:
        for item in supervise(name, worker, spool):
            yield item
            if isinstance(item, Artifact):
                outcome = _worse(outcome, item.settled().outcome)
            elif isinstance(item, Gap):
                outcome = _worse(outcome, item.outcome)
    finally:
        worker.end()
        runs_again = guard.set_free() if collector.stops else None
        guard.relax()
    yield from _leftovers(worker, spool)
    if runs_again is False:
        yield Gap(
            f"the target running after {name}",
            Outcome.FAILED,
            Reason(
                "target-held",
                "the target was still stopped a second after the collector ended",
                f"Look at once: grep -E 'State|TracerPid' /proc/{pin.pid}/status; kill -CONT {pin.pid}",
            ),
        )
    yield CollectorEnded(name, outcome, time.monotonic() - begun, runs_again)


_RANK = (
    Outcome.EMPTY,
    Outcome.COLLECTED,
    Outcome.MISSING,
    Outcome.REFUSED,
    Outcome.DENIED,
    Outcome.PARTIAL,
    Outcome.LATE,
    Outcome.FAILED,
)


def _worse(one: Outcome, other: Outcome) -> Outcome:
    return max(one, other, key=_RANK.index)


def _leftovers(worker: Worker, spool: Path) -> Iterator[Item]:
    """
    Files that a collector left in its spool folder without handing them over: adopted when it was cut off, by the
    capture or by an error; scratch when it came to its own end.

    A process that could not be reaped may still be writing: what it holds is fenced off, not adopted.
    """
    try:
        with os.scandir(spool) as entries:
            left = sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    except OSError:
        return  # the folder is gone, and its volume with it
    if worker.reaped and (worker.early or worker.cut is not None or not worker.done):
        for name in left:
            yield Artifact(
                path=f"unfinished/{name}",
                body=spool / name,
                source="left in the spool folder by a collector that was cut off",
                media_type="application/octet-stream",
                outcome=Outcome.PARTIAL,
                reason=_why_ended(worker),
                bulk=True,
            )
    try:
        spool.rmdir()
    except OSError:
        import shutil

        shutil.rmtree(spool, ignore_errors=True)


def _examine(
    pin: Pin, target: Target, limit_s: float, spool_root: Path, floor_bytes: int, stop: Stop, guard: Guard
) -> Generator[Item, None, Target]:
    from pmforensics.collect.examine import iter_examination, read_target_json

    def job(host: Host, send: Sender) -> None:
        for value in iter_examination(pin, host):
            send.control(kind="fact", name="target", value=value)

    worker = start(job, pin, target, limit_s=limit_s, spool=spool_root, floor_bytes=floor_bytes, stop=stop)
    guard.watch(worker.pid, stops=False)
    found = target
    try:
        for item in supervise("examine", worker, spool_root):
            if isinstance(item, Fact):
                found = read_target_json(item.value)
            yield item
    finally:
        worker.end()
        guard.relax()
    return found
