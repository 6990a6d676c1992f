"""What a Go process's heap is made of, by the place of allocation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pmforensics.collect.base import Host
from pmforensics.collect.pprof_endpoint import Wanted, fetch, find_pprof
from pmforensics.formats.structure import PprofCheck
from pmforensics.model.capture import MIB, Artifact, Gap
from pmforensics.model.process import Runtime, Target

FIRST_ANSWER_S = 5.0
LATER_ANSWER_S = 1.0  # once one profile has hung
SHARE = 0.4  # of what is left, for one profile

_PROFILES = (
    ("heap", "heap profile (memory in use)"),
    ("allocs", "allocation profile (all memory since the start)"),
    ("threadcreate", "thread creation profile"),
)


@dataclass(frozen=True, slots=True)
class HeapProfile:
    """
    Samples of the memory in use, and of all memory ever allocated, by stack.

    Source:   GET {pprof}/heap, allocs, threadcreate (Go, net/http/pprof), never with gc=1.
    Yields:   heap.pb.gz, allocs.pb.gz, threadcreate.pb.gz: pprof profiles. The first two hold the state at the end of
              the last garbage collection.
    Cost:     no stop of the world, 2 ms each.
    Partial:  a server that hangs, breaks off, lies about the length or sends more than `limit_bytes` leaves what it
              sent.
    Errors:   NotThere, EndpointRefused (no pprof), AccessDenied, DeadlinePassed.
    """

    name: ClassVar[str] = "heap_profile"
    question: ClassVar[str] = "Which code held the memory, and which code asked for it?"
    limit_s: ClassVar[float] = 10.0
    stops: ClassVar[bool] = False
    opt_in: ClassVar[bool] = False

    pprof_url: str | None = None
    limit_bytes: int = 64 * MIB

    def applies_to(self, target: Target) -> bool:
        return Runtime.GO in target or self.pprof_url is not None

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        base = find_pprof(target, host, self.pprof_url)
        answer_s = FIRST_ANSWER_S
        for name, wanted in _PROFILES:
            share_s = host.remaining_s() * SHARE
            item = Wanted(
                url=f"{base}/{name}",
                path=f"{name}.pb.gz",
                wanted=wanted,
                check=PprofCheck(),
                timeout_s=min(answer_s, share_s),
                share_s=share_s,
                limit_bytes=self.limit_bytes,
                question=self.question,
            )
            fetched = yield from fetch(host, item)
            if fetched.timed_out:
                answer_s = LATER_ANSWER_S
