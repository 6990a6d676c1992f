"""The process under examination."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Runtime(Enum):
    """Whose stacks and heap these are; every process is native underneath."""

    GO = "go"
    JVM = "jvm"
    CPYTHON = "cpython"
    NODE = "node"
    NATIVE = "native"


@dataclass(frozen=True, slots=True)
class Target:
    """
    What is known of the target when collectors run.

    start_ticks    field 22 of /proc/PID/stat: clock ticks after boot; pid + boot + start_ticks is unique
    state          one letter as in /proc/PID/stat when the capture began
    ns_pids        NSpid: this pid in each nested pid namespace, ours first; the last one is its own view
    argv           redacted
    machine        ELF e_machine of the executable (62 x86-64, 183 aarch64), 0 if unknown
    same_*_ns      whether pmf shares this namespace with the target
    """

    pid: int
    start_ticks: int
    state: str = "?"
    comm: str = ""
    exe: str | None = None
    exe_deleted: bool = False
    argv: tuple[str, ...] = ()
    uid: int = -1
    gid: int = -1
    ns_pids: tuple[int, ...] = ()
    runtimes: frozenset[Runtime] = frozenset()
    machine: int = 0
    elf_class: int = 0
    container_id: str | None = None
    pod_uid: str | None = None
    unit: str | None = None
    same_pid_ns: bool = True
    same_mnt_ns: bool = True
    same_net_ns: bool = True
    kernel_thread: bool = False

    def __contains__(self, runtime: Runtime) -> bool:
        """`Runtime.GO in target`."""
        return runtime in self.runtimes

    @property
    def own_pid(self) -> int:
        """The pid as the target itself sees it."""
        return self.ns_pids[-1] if self.ns_pids else self.pid
