"""How much the target was allowed, how much it used, and who was squeezing it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

from pmforensics.collect.base import Host
from pmforensics.collect.gaps import gap_of
from pmforensics.errors import CollectError, NotThere, TargetGone
from pmforensics.formats.proc import parse_cgroup
from pmforensics.model.capture import Artifact, Gap
from pmforensics.model.process import Target

CGROUP_V2_FILES = (
    "memory.current", "memory.peak", "memory.max", "memory.high", "memory.events", "memory.stat", "memory.pressure",
    "memory.swap.current", "memory.swap.max", "memory.oom.group", "cpu.max", "cpu.stat", "cpu.pressure",
    "io.pressure", "io.stat", "pids.current", "pids.max", "cgroup.events", "cgroup.freeze",
)  # fmt: skip
CGROUP_V1_FILES = {
    "memory": (
        "memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.limit_in_bytes", "memory.failcnt",
        "memory.stat", "memory.oom_control", "memory.memsw.usage_in_bytes",
    ),
    "cpu": ("cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.stat", "cpu.shares"),
    "pids": ("pids.current", "pids.max"),
    "freezer": ("freezer.state",),
}  # fmt: skip
HOST_FILES = (
    "/proc/meminfo", "/proc/loadavg", "/proc/pressure/memory", "/proc/pressure/cpu", "/proc/pressure/io",
    "/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/version",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Resources:
    """
    Limits and use of memory, CPU and pids: of the process, its cgroup and the host.

    Source:   /proc/PID/smaps_rollup, the cgroup files of v1 or v2 under /sys/fs/cgroup, /proc/meminfo,
              /proc/pressure/*.
    Yields:   cgroup/* (v2), unified/* (v2 beside v1), cgroup-CONTROLLER/* (v1), host/*, smaps_rollup; each file as
              the kernel writes it.
    Cost:     smaps_rollup walks the page tables under the target's memory lock, shared: about 0.1 s per 10 GB.
    Partial:  never.
    Errors:   AccessDenied, NotThere per file.
    """

    name: ClassVar[str] = "resources"
    question: ClassVar[str] = "Was it out of memory, throttled, or squeezed by its neighbours?"
    limit_s: ClassVar[float] = 4.0
    stops: ClassVar[bool] = False
    opt_in: ClassVar[bool] = False

    def applies_to(self, target: Target) -> bool:
        return True

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        with suppress(TargetGone):  # the host's files are worth having all the same; smaps_rollup tells that it is gone
            yield from self._cgroup(host)
        for path in HOST_FILES:
            yield from self._file(f"host/{posixpath.basename(path)}", path, host)
        if target.kernel_thread:
            return
        try:
            body = host.read_proc("smaps_rollup")
        except CollectError as error:
            yield gap_of(error, f"{self.name}/smaps_rollup", self.question)
        else:
            yield Artifact("smaps_rollup", body, f"/proc/{target.pid}/smaps_rollup")

    def _cgroup(self, host: Host) -> Iterator[Artifact | Gap]:
        try:
            placed = parse_cgroup(host.read_proc("cgroup").decode("utf-8", "replace"))
        except CollectError as error:
            yield gap_of(error, f"{self.name}/cgroup", self.question)
            return
        for controllers, path in placed.paths.items():
            # The path is the kernel's, but joined to a folder of ours: keep it inside that folder.
            inside = posixpath.normpath("/" + path).lstrip("/")
            if controllers == "":
                for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
                    for name in CGROUP_V2_FILES:
                        where = posixpath.join(root, inside, name)
                        yield from self._file(f"{posixpath.basename(root)}/{name}", where, host)
            for controller in controllers.split(","):
                for name in CGROUP_V1_FILES.get(controller, ()):
                    where = posixpath.join("/sys/fs/cgroup", controller, inside, name)
                    yield from self._file(f"cgroup-{controller}/{name}", where, host)

    def _file(self, name: str, path: str, host: Host) -> Iterator[Artifact | Gap]:
        try:
            body = host.read(path)
        except NotThere:
            return
        except CollectError as error:
            yield gap_of(error, f"{self.name}/{name}")
            return
        yield Artifact(name, body, path)
