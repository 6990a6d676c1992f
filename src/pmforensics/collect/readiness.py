"""What can be captured here, what is refused, and how to mend it: the questions of `pmf doctor`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pmforensics.collect.pin import Pin, split_stat

CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_KILL, CAP_CHECKPOINT_RESTORE = 19, 21, 5, 40  # linux/capability.h
YAMA = "/proc/sys/kernel/yama/ptrace_scope"
YAMA_SAYS = {
    1: "only a parent, or a process with CAP_SYS_PTRACE, may attach",
    2: "only a process with CAP_SYS_PTRACE may attach",
    3: "nobody may attach until the next reboot",
}


class Ready(Enum):
    """Works; works in part; does not work."""

    OK = "ok"
    LIMITED = "limited"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a capture needs: whether it is there, what follows, and the fix ("" when none is needed)."""

    name: str
    ready: Ready
    says: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that some evidence needs; `package` as Debian names it."""

    names: tuple[str, ...]
    gives: str
    package: str


TOOLS = (
    Tool(("py-spy",), "Python stacks", "pip install 'pmforensics[python]'"),
    Tool(("eu-stack", "gdb"), "names in native stacks", "apt-get install elfutils"),
    Tool(("journalctl",), "log slices from the journal", "apt-get install systemd"),
)


def iter_host_checks() -> Iterator[Check]:
    """This machine and this user, whatever the target."""
    caps = capabilities()
    yield _privileges(caps)
    yield _yama(caps)
    yield _core_pattern()
    yield from iter_tool_checks()


def iter_tool_checks() -> Iterator[Check]:
    """Programs that are or are not installed. The JVM needs none: pmf speaks its attach protocol itself."""
    import shutil
    import sys

    beside = str(Path(sys.executable).parent)
    path = os.pathsep.join((beside, os.environ.get("PATH", os.defpath)))
    for tool in TOOLS:
        found = next((name for name in tool.names if shutil.which(name, path=path)), None)
        if found:
            yield Check(found, Ready.OK, f"gives {tool.gives}")
        else:
            yield Check(tool.names[0], Ready.LIMITED, f"not installed: no {tool.gives}", tool.package)


def iter_target_checks(pin: Pin) -> Iterator[Check]:
    """What this user may do to this process, tried with calls that do not disturb it."""
    yield _alive(pin)
    yield from _access(pin)
    yield _tracer(pin)
    yield _threads_held(pin)


def capabilities() -> int:
    """The effective capability set of pmf itself, as a bit mask."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _has(caps: int, bit: int) -> bool:
    return bool(caps >> bit & 1)


def _privileges(caps: int) -> Check:
    if _has(caps, CAP_SYS_PTRACE) and _has(caps, CAP_SYS_ADMIN):
        return Check("privileges", Ready.OK, f"uid {os.geteuid()} with CAP_SYS_PTRACE and CAP_SYS_ADMIN")
    if _has(caps, CAP_SYS_PTRACE):
        return Check(
            "privileges",
            Ready.LIMITED,
            f"uid {os.geteuid()} with CAP_SYS_PTRACE; no CAP_SYS_ADMIN: no kernel stacks",
            "Run pmf as root for kernel stacks.",
        )
    return Check(
        "privileges",
        Ready.LIMITED,
        f"uid {os.geteuid()} without CAP_SYS_PTRACE: only processes of this user, and only where Yama lets it",
        "Run pmf as root (sudo pmf ...), or give its container CAP_SYS_PTRACE.",
    )


def _yama(caps: int) -> Check:
    try:
        scope = int(Path(YAMA).read_text())
    except (OSError, ValueError):
        return Check("ptrace scope", Ready.OK, "this kernel has no Yama")
    if scope == 0 or (scope < 3 and _has(caps, CAP_SYS_PTRACE)):
        return Check("ptrace scope", Ready.OK, f"Yama {scope}: pmf may attach")
    fix = "reboot with kernel.yama.ptrace_scope below 3" if scope == 3 else "sysctl kernel.yama.ptrace_scope=0"
    return Check("ptrace scope", Ready.NO, f"Yama {scope}: {YAMA_SAYS.get(scope, '')}", f"Run pmf as root, or {fix}.")


def _core_pattern() -> Check:
    try:
        pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    except OSError:
        return Check("crash cores", Ready.LIMITED, "core_pattern cannot be read: cores on disk may not be found")
    if pattern.startswith("|"):
        return Check("crash cores", Ready.OK, f"piped to {pattern[1:].split()[0] if pattern[1:].split() else '?'}")
    if not pattern.startswith("/"):
        return Check(
            "crash cores",
            Ready.LIMITED,
            f"core_pattern {pattern!r}: a crash writes into the process's own folder, gone with a container",
            "sysctl kernel.core_pattern=/var/lib/cores/core.%e.%p.%t on a volume that stays.",
        )
    return Check("crash cores", Ready.OK, f"written to {pattern}")


def _alive(pin: Pin) -> Check:
    if pin.state == "Z":
        return Check("process", Ready.NO, f"{pin.comm} is a zombie: it has exited, little is left", "Look at its logs.")
    if pin.state == "D":
        return Check("process", Ready.LIMITED, f"{pin.comm} sleeps in the kernel (D): attaching may take for ever")
    return Check("process", Ready.OK, f"{pin.comm}, state {pin.state}")


def _access(pin: Pin) -> Iterator[Check]:
    fix = "Run pmf as root, or as the process's own user with CAP_SYS_PTRACE."
    questions = (
        ("memory map", "maps", "build IDs and runtime"),
        ("open files", "fd", "logs, sockets and pprof endpoints"),
        ("memory", "mem", "stacks and cores"),
    )
    for name, file, gives in questions:
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECTORY if file == "fd" else 0)
            fd = os.open(file, flags, dir_fd=pin.proc_fd)
            try:
                if file == "fd":
                    os.listdir(fd)
            finally:
                os.close(fd)
            yield Check(name, Ready.OK, f"readable: {gives}")
        except OSError as error:
            yield Check(name, Ready.NO, f"{error.strerror}: no {gives}", fix)
    try:
        pin.read(f"task/{pin.pid}/stack")
        yield Check("kernel stacks", Ready.OK, "readable: where threads sleep in the kernel")
    except OSError as error:
        yield Check(
            "kernel stacks", Ready.LIMITED, f"{error.strerror}: wchan and syscall still tell", "Run pmf as root."
        )


def _tracer(pin: Pin) -> Check:
    try:
        status = pin.read("status").decode("utf-8", "replace")
    except OSError:
        return Check("tracer", Ready.NO, "the process is gone")
    tracer = next((line.split()[1] for line in status.splitlines() if line.startswith("TracerPid:")), "0")
    if tracer != "0":
        return Check(
            "tracer",
            Ready.NO,
            f"process {tracer} already traces it: no second tracer, so no stacks and no core",
            f"End it first: kill {tracer}",
        )
    return Check("tracer", Ready.OK, "nobody traces it")


def _threads_held(pin: Pin) -> Check:
    """Threads in D state cannot be stopped, so their registers cannot be read."""
    held = total = 0
    try:
        fd = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=pin.proc_fd)
    except OSError:
        return Check("threads", Ready.NO, "cannot be listed")
    try:
        names = os.listdir(fd)
    finally:
        os.close(fd)
    for tid in names:
        try:
            total += 1
            held += split_stat(pin.read(f"task/{tid}/stat"))[1][0] == b"D"
        except (OSError, IndexError):
            continue
    if held:
        return Check("threads", Ready.LIMITED, f"{held} of {total} hang in the kernel (D): no registers of those")
    return Check("threads", Ready.OK, f"{total}, none hangs in the kernel")
