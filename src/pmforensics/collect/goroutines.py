"""Every goroutine of a Go process, in three forms."""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from pmforensics.collect.base import Host, facts_of
from pmforensics.collect.gaps import gap_of
from pmforensics.collect.pprof_endpoint import Fetched, Wanted, fetch, find_pprof, goroutine_count
from pmforensics.errors import (
    AccessDenied,
    AnswerBroken,
    CollectError,
    DeadlinePassed,
    EndpointRefused,
    NotThere,
    WouldHarm,
)
from pmforensics.formats.proc import parse_cgroup
from pmforensics.formats.structure import (
    GO_STACK_LIMIT_BYTES,
    GoroutineProfileTextCheck,
    GoroutineTextCheck,
    PprofCheck,
    Structure,
    StructureCheck,
)
from pmforensics.model.capture import MIB, Artifact, Gap, Outcome, Reason, Settlement
from pmforensics.model.process import Runtime, Target

FIRST_ANSWER_S = 5.0  # 300,000 goroutines of 36 frames each took 3.2 s in binary form
LATER_ANSWER_S = 2.0  # once one form has hung
SHARE = 0.4  # of what is left, for one of the first two forms

# Measured with Go 1.27 on x86-64: 1,000 to 300,000 goroutines, 8 to 94 frames each. For debug=2 the runtime starts
# with a buffer of 1 MiB and doubles it until the text fits or 64 MiB are full. Each time it stops the world and
# unwinds every goroutine anew, also those whose text no longer fits. One frame took 0.39 to 0.70 us a pass; 300,000
# goroutines of 36 frames took 43 s for their 64 MiB.
FRAME_PASS_S = 0.6e-6
FRAME_TEXT_BYTES = 100  # 66 in shallow stacks, 101 in deep ones
# A pass took 1.5 to 3.3 times as long as debug=1 had taken: where that is slow (a throttled container), so is this.
PASS_PER_DEBUG1 = 2.0
TELLING_FRAMES = 100_000  # below, the time of debug=1 is that of the network and the scheduler
FIRST_BUFFER_BYTES = MIB
UNKNOWN_DEPTH_FRAMES = 32  # deeper than most, for when only the number of goroutines is known

_FORMS = (
    ("goroutine.pb.gz", "goroutines, binary profile"),
    ("goroutine-1.txt", "goroutines, grouped as text"),
    ("goroutine-2.txt", "goroutines one by one, with ids, states, waits and creators"),
)


@dataclass(frozen=True, slots=True)
class Goroutines:
    """
    Every goroutine with its full stack, in the Go runtime's own words.

    Source:   GET {pprof}/goroutine?debug=0, then 1, then 2 (Go, net/http/pprof).
    Yields:   goroutine.pb.gz (every stack, equal ones counted), goroutine-1.txt (the same as text), goroutine-2.txt
              (one by one, with id, state, wait in whole minutes, creator).
    Cost:     the first two stop the world for two moments since Go 1.19, for their whole length before, and take up
              to 2 kB of the target's memory per goroutine. debug=2 stops the world while it prints, up to seven
              times in a row, and takes up to 127 MiB: it waits behind a gate on the predicted pause and on memory.
    Partial:  the runtime cuts debug=2 at 64 MiB and says nothing; a server that hangs, breaks off, lies about the
              length or sends more than `limit_bytes` leaves what it sent.
    Errors:   NotThere, EndpointRefused (no pprof), AccessDenied, DeadlinePassed.
    """

    name: ClassVar[str] = "goroutines"
    question: ClassVar[str] = "What was every goroutine waiting for, since when, and who had started it?"
    limit_s: ClassVar[float] = 60.0
    stops: ClassVar[bool] = True
    opt_in: ClassVar[bool] = False

    pprof_url: str | None = None
    allow_pause_s: float = 1.0
    limit_bytes: int = 2 * GO_STACK_LIMIT_BYTES  # the runtime itself never prints more than half of it

    def applies_to(self, target: Target) -> bool:
        return Runtime.GO in target or self.pprof_url is not None

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        try:
            base = find_pprof(target, host, self.pprof_url)
        except (EndpointRefused, NotThere) as error:
            hint = f"{error.hint} The core's stacks are those of threads, not of goroutines."
            raise type(error)(error.message, hint=hint) from None

        binary = yield from fetch(host, self._wanted(base, 0, PprofCheck(), host, FIRST_ANSWER_S), _with_count)
        answer_s = LATER_ANSWER_S if binary.timed_out else FIRST_ANSWER_S
        grouped = yield from fetch(host, self._wanted(base, 1, StackCount(), host, answer_s))

        in_binary, in_grouped = binary.fact("first_value_sum"), grouped.fact("total")
        count = in_grouped or in_binary or goroutine_count(base, host)
        try:
            printing = self._check_harmless(count, grouped, host)
        except CollectError as error:
            gap = gap_of(error, _FORMS[2][1], self.question)
            step = " ".join(filter(None, (error.hint, _kept(binary, grouped))))
            yield replace(gap, reason=replace(gap.reason, next_step=step))
            return
        answer_s = LATER_ANSWER_S if binary.timed_out or grouped.timed_out else FIRST_ANSWER_S
        one_by_one = replace(
            self._wanted(base, 2, GoroutineTextCheck(), host, answer_s + 4 * printing.pause_s),
            share_s=host.remaining_s(),
            bulk=True,
            facts=facts_of(
                goroutines_in_binary=in_binary,
                goroutines_in_debug1=in_grouped,
                predicted_pause_s=round(printing.pause_s, 3),
            ),
        )

        def settled_by(fetched: Fetched, settlement: Settlement) -> Settlement:
            text = fetched.structure
            if count and text and not fetched.error and text.actual_bytes == GO_STACK_LIMIT_BYTES:
                return replace(settlement, outcome=Outcome.PARTIAL, reason=_cut(text, count, _kept(binary, grouped)))
            return settlement

        yield from fetch(host, one_by_one, settled_by)

    def _wanted(self, base: str, debug: int, check: StructureCheck, host: Host, answer_s: float) -> Wanted:
        path, wanted = _FORMS[debug]
        share_s = host.remaining_s() * SHARE
        return Wanted(
            url=f"{base}/goroutine?debug={debug}",
            path=path,
            wanted=wanted,
            check=check,
            timeout_s=min(answer_s, share_s) if debug < 2 else answer_s,
            share_s=share_s,
            limit_bytes=self.limit_bytes,
            media_type="text/plain" if debug else "application/gzip",
            question=self.question,
            stops=True,
        )

    def _check_harmless(self, count: int | None, grouped: Fetched, host: Host) -> Printing:
        """What debug=2 would cost. WouldHarm, DeadlinePassed when that is too much."""
        if count is None:
            raise WouldHarm("how many goroutines there are could not be learned, and so neither the pause")
        printing = predict(count, grouped)
        about = f"{count:,} goroutines would stand still for about {printing.pause_s:.1f} s"
        if printing.pause_s > self.allow_pause_s:
            raise WouldHarm(
                f"{about}, up to {printing.passes} stops in a row; {self.allow_pause_s:g} s are allowed",
                hint=f"--allow-pause {math.ceil(printing.pause_s * 1.25)} prints them all the same.",
            )
        left_s = host.remaining_s()
        if printing.pause_s >= left_s:
            raise DeadlinePassed(f"{about} and {left_s:.1f} s are left", hint="Give more time: --budget.")
        free_bytes = memory_left_bytes(host)
        if free_bytes is not None and free_bytes < 2 * printing.memory_bytes:
            raise WouldHarm(
                f"the runtime would take {printing.memory_bytes // MIB} MiB to print them,"
                f" and {free_bytes // MIB} MiB are left before the target meets its memory limit"
            )
        return printing


def _kept(*forms: Fetched) -> str:
    names = " and ".join(name for (name, _), form in zip(_FORMS, forms, strict=False) if form.whole)
    return f"Every stack is in {names}, without ids, states and minutes." if names else ""


def _with_count(fetched: Fetched, settlement: Settlement) -> Settlement:
    """In a goroutine profile each sample's value is the number of goroutines with its stack."""
    return replace(settlement, facts=facts_of(**settlement.facts, goroutines=fetched.fact("first_value_sum")))


def _cut(text: Structure, count: int, kept: str) -> Reason:
    return Reason(
        "cut",
        f"Go cut the dump at its limit of 64 MiB, after {text.facts.get('goroutines', 0):,} of {count:,} goroutines.",
        f"Who is absent from it may be alive all the same. {kept}".strip(),
    )


# -- what debug=2 would cost -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Printing:
    """What the runtime will do to print: stop the world `passes` times, `pause_s` in all, and take memory."""

    pause_s: float
    passes: int
    memory_bytes: int


def predict(goroutines: int, grouped: Fetched) -> Printing:
    """From the number of goroutines, the depth of the stacks that debug=1 showed, and how long it took."""
    seen, frames = grouped.fact("goroutines") or 0, grouped.fact("frames") or 0
    depth = frames / seen if seen else UNKNOWN_DEPTH_FRAMES
    all_frames = goroutines * depth
    text_bytes = all_frames * FRAME_TEXT_BYTES
    passes, buffer_bytes = 1, FIRST_BUFFER_BYTES
    while buffer_bytes < min(text_bytes, GO_STACK_LIMIT_BYTES):
        passes, buffer_bytes = passes + 1, buffer_bytes * 2
    pass_s = all_frames * FRAME_PASS_S
    if frames >= TELLING_FRAMES:
        pass_s = max(pass_s, PASS_PER_DEBUG1 * grouped.first_byte_s * all_frames / frames)
    return Printing(passes * pass_s, passes, 2 * buffer_bytes - FIRST_BUFFER_BYTES)


class StackCount:
    """GoroutineProfileTextCheck that also counts frames: goroutines times the depth of their stack."""

    _GROUP = re.compile(rb"^(\d{1,12}) @((?: 0x[0-9a-f]+)*)$", re.MULTILINE)
    _MAX_LINE_BYTES = 64 * 1024  # 128 frames need 2.5 kB

    def __init__(self) -> None:
        self._check = GoroutineProfileTextCheck()
        self._rest = b""
        self._frames = 0

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._check.feed(chunk)
        lines, newline, rest = (self._rest + bytes(chunk)).rpartition(b"\n")
        self._rest = rest[-self._MAX_LINE_BYTES :]
        for goroutines, stack in self._GROUP.findall(lines + newline):
            self._frames += int(goroutines) * stack.count(b" ")

    def finish(self) -> Structure:
        """The verdict on all that was fed, `frames` among its facts."""
        structure = self._check.finish()
        return replace(structure, facts={**structure.facts, "frames": self._frames})


_LIMITS = (
    # mount point, controller in /proc/PID/cgroup, limit, use, field of memory.stat that can be given back
    ("/sys/fs/cgroup", "", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/unified", "", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
_MAX_DEPTH = 32  # of nested groups


def memory_left_bytes(host: Host) -> int | None:
    """
    How much more memory the target can take before the kernel's killer comes.

    The least of what its memory cgroup, each group around it, and the machine have left; None if nothing says.
    """
    left = [] if (free := _field(host, "/proc/meminfo", "MemAvailable:")) is None else [free * 1024]
    try:
        placed = parse_cgroup(host.read_proc("cgroup").decode("utf-8", "replace")).paths
    except (NotThere, AccessDenied):
        placed = {}
    for root, controller, limit, use, reclaimable in _LIMITS:
        path = next((path for names, path in placed.items() if controller in names.split(",")), None)
        if path is None:
            continue
        group = posixpath.normpath(f"/{path}")
        for _ in range(_MAX_DEPTH):
            folder = posixpath.join(root, group.lstrip("/"))
            most, used = _field(host, posixpath.join(folder, limit)), _field(host, posixpath.join(folder, use))
            if most is not None and used is not None:
                cached = _field(host, posixpath.join(folder, "memory.stat"), reclaimable) or 0
                left.append(max(0, most - used + cached))
            if group == "/":
                break
            group = posixpath.dirname(group)
    return min(left, default=None)


def _field(host: Host, path: str, name: str = "") -> int | None:
    """A number in a file of the kernel: behind `name`, or the file's only word. None for "max" and for no such file."""
    try:
        words = host.read(path).split()
    except (NotThere, AccessDenied, AnswerBroken):
        return None
    at = words.index(name.encode()) + 1 if name.encode() in words else (0 if not name else len(words))
    return int(words[at]) if at < len(words) and words[at].isdigit() else None
