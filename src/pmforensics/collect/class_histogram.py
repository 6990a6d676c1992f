"""Which classes fill a JVM's heap."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pmforensics.collect.attach_jvm import SECOND_PATIENCE_S, attach
from pmforensics.collect.base import Host
from pmforensics.collect.checked import checked, settlement_of
from pmforensics.errors import WouldHarm
from pmforensics.formats.heap_info import HeapInfo
from pmforensics.formats.structure import HistogramCheck
from pmforensics.model.capture import GIB, MIB, Artifact, Gap, Pause, PauseBasis
from pmforensics.model.process import Runtime, Target

# Seconds per GiB of used heap full of 28-byte objects, the worst that was found; 2 CPUs, JDK 17.0.15 and 25.0.3:
# G1, Serial, Parallel 0.25 to 0.55; ZGC 1.1 to 2.6 and Shenandoah 0.6 to 1.5, which mark while they walk.
WALK_S_PER_GIB = 0.5
CONCURRENT_WALK_S_PER_GIB = 2.0


@dataclass(frozen=True, slots=True)
class ClassHistogram:
    """
    Instances and bytes of every class in the heap, reachable or not.

    Source:   GC.class_histogram -all, over the attach socket, else through jcmd.
    Yields:   class_histogram.txt, some 30 kB.
    Cost:     one safepoint while the heap is walked: up to 0.5 s per GiB in use (2 s with ZGC and Shenandoah).
    Partial:  a text without its Total line, or whose rows do not add up to it.
    Errors:   WouldHarm when the walk is predicted to take longer than `allow_pause_s`; those of attaching.
    """

    name: ClassVar[str] = "class_histogram"
    question: ClassVar[str] = "Which classes filled the heap?"
    limit_s: ClassVar[float] = 15.0
    stops: ClassVar[bool] = True
    opt_in: ClassVar[bool] = False
    allow_pause_s: float = 1.0

    def applies_to(self, target: Target) -> bool:
        return Runtime.JVM in target

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        with attach(target, host, patience_s=SECOND_PATIENCE_S) as jvm:
            heap = jvm.heap()
            predicted_s = walk_s(heap)
            refuse_pause(predicted_s, self.allow_pause_s, heap)
            check = HistogramCheck()
            # Without -all (inspectheap -live) HotSpot runs a full garbage collection first: a pause of seconds, and
            # the dead objects, which are evidence too, are gone.
            answer = jvm.call("GC.class_histogram -all", timeout_s=host.remaining_s())
            pause = Pause(answer.waited_s, PauseBasis.AT_MOST)
            facts = {
                **jvm.facts(),
                "used_heap_bytes": heap.used_bytes,
                "predicted_pause_s": round(predicted_s, 3),
            }
            yield Artifact(
                "class_histogram.txt",
                checked(answer.chunks, check),
                "GC.class_histogram -all",
                settle=lambda: settlement_of(check.finish(), facts, pause),
                pause=pause,
            )


def walk_s(heap: HeapInfo) -> float:
    """How long a walk over the whole heap may hold the VM still."""
    rate = CONCURRENT_WALK_S_PER_GIB if heap.concurrent else WALK_S_PER_GIB
    return rate * (heap.used_bytes or 0) / GIB


def refuse_pause(predicted_s: float, allow_pause_s: float, heap: HeapInfo) -> None:
    """WouldHarm when the VM would stand still for longer than is allowed."""
    if predicted_s > allow_pause_s:
        raise WouldHarm(
            f"it would hold the VM still for about {predicted_s:.1f} s"
            f" ({(heap.used_bytes or 0) / MIB:,.0f} MiB of heap in use), and {allow_pause_s:g} s are allowed",
            hint=f"Allow it: --allow-pause {math.ceil(predicted_s)}",
        )
