"""The stacks of all threads as native code sees them, unwound at leisure from a core of a few milliseconds."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pmforensics.collect.base import CHUNK_BYTES, Host
from pmforensics.collect.checked import checked, settlement_of
from pmforensics.collect.core_contents import CoreLimits
from pmforensics.collect.gaps import gap_of, reason_of
from pmforensics.collect.live_core import (
    CORE_MEDIA_TYPE,
    Taken,
    refuse_long_pause,
    settled,
    take_stacks,
    threads_not_stopped,
)
from pmforensics.collect.target_memory import inside_root, is_code_file
from pmforensics.errors import AnswerBroken, CollectError, NotSupported, NotThere, TargetGone, ToolFailed, ToolMissing
from pmforensics.formats.proc import Mapping
from pmforensics.formats.structure import Shape, Structure
from pmforensics.model.capture import (
    KIB,
    MIB,
    Artifact,
    Gap,
    Json,
    Outcome,
    Pause,
    PauseBasis,
)
from pmforensics.model.process import Target

MAX_FRAMES = 1024  # per thread; eu-stack's own limit of 256 cuts deep recursion, and a broken stack never ends
MAX_KERNEL_STACKS = 20_000
MAX_SYSROOT_FILES = 8192
TOOL_DATA_BYTES = 1024 * MIB  # symbols by the gigabyte would come out of the memory that the target shares with us
HELD_BY_TOOL_S = 0.5  # eu-stack -p and gdb -p unwind while the target stands still; the guess for a small program
GDB_SETUP = (
    # The core and the images come from the target: nothing in them may run, and nobody is asked over the network.
    "set auto-load off", "set auto-load safe-path /nonexistent", "set debuginfod enabled off",
    "set pagination off", "set confirm off", "set width 0", "set style enabled off",
    f"set backtrace limit {MAX_FRAMES}",
)  # fmt: skip
_THREAD_HEAD = re.compile(rb"^(?:TID \d+:|Thread \d+ \()", re.MULTILINE)
_FRAME = b"#0 "


@dataclass(frozen=True, slots=True)
class ThreadsNative:
    """
    Every thread's registers and native stack, C frames and system libraries included.

    Source:   PTRACE_SEIZE and /proc/PID/mem; unwound by eu-stack or gdb from the core so taken. Without ptrace:
              /proc/PID/task/*/stack.
    Yields:   stacks.core (ELF core: registers, stacks, ELF headers with build IDs), threads.txt (the tool's own
              words); kernel_stacks.txt where the target cannot be stopped.
    Cost:     stops the target for about 0.1 ms per thread, measured and recorded. A thread that waits in epoll_wait
              or its like sees EINTR once.
    Partial:  a thread in uninterruptible sleep does not stop: only its pc, sp and system call are known. Stacks are
              cut at `stack_bytes`. Code made at run time (JIT) has no names.
    Errors:   AccessDenied with the reason (traced by another, Yama, uid), WouldHarm when the pause is not allowed,
              ToolMissing when nothing unwinds (the core is kept).
    """

    name: ClassVar[str] = "threads_native"
    question: ClassVar[str] = "Where in native code was every thread, and what did it wait for?"
    limit_s: ClassVar[float] = 15.0
    stops: ClassVar[bool] = True
    opt_in: ClassVar[bool] = False

    keep_core: bool = True
    allow_pause_s: float = 1.0
    stack_bytes: int = 256 * KIB
    limit_bytes: int = 32 * MIB

    def applies_to(self, target: Target) -> bool:
        return not target.kernel_thread

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        try:
            limits = CoreLimits(self.allow_pause_s, self.stack_bytes, self.limit_bytes)
            taken, chunks = take_stacks(target, host, limits)
        except TargetGone:
            raise
        except NotSupported as error:
            yield from self._while_held(target, host, error)
            return
        except CollectError as error:
            yield gap_of(error, f"{self.name}/threads.txt", self.question)
            if not isinstance(error, NotThere):
                yield from _kernel_stacks(target, host)
            return
        fd = _in_memory(chunks)
        try:
            if self.keep_core:
                yield from _core(target, host, fd, taken, self.allow_pause_s)
            yield from threads_not_stopped(taken, self.name)
            yield from self._unwound(target, host, fd, taken)
        finally:
            os.close(fd)

    def _unwound(self, target: Target, host: Host, core_fd: int, taken: Taken) -> Iterator[Artifact | Gap]:
        """The words of the first tool that shows a frame."""
        pause = None if self.keep_core else taken.pause
        why: CollectError = ToolMissing(
            "neither eu-stack nor gdb is installed",
            hint="Install elfutils or gdb; a core that was kept can be unwound later.",
        )
        with _modest_children():
            for tool, argv in _unwinders(target, host, f"/proc/{os.getpid()}/fd/{core_fd}", taken):
                source = f"{tool.name} on the core of the stacks of process {target.pid}"
                try:
                    yield _telling(host, tool, argv, source, taken.threads, pause)
                except TargetGone:
                    raise
                except CollectError as error:
                    why = error
                else:
                    return
        yield gap_of(why, f"{self.name}/threads.txt", self.question)
        yield from _kernel_stacks(target, host)

    def _while_held(self, target: Target, host: Host, why: CollectError) -> Iterator[Artifact | Gap]:
        """pmf does not know this kind of registers: a tool has to hold the target while it unwinds."""
        try:
            tool = host.find_tool("eu-stack") or host.find_tool("gdb")
            if tool is None:
                raise why
            refuse_long_pause(HELD_BY_TOOL_S, self.allow_pause_s, f"{tool.name} at the live process")
            argv: list[str | Path] = [tool, "-m", "-b", "-n", str(MAX_FRAMES), "-p", str(target.pid)]
            if tool.name == "gdb":
                argv = [*_gdb(tool), "-p", str(target.pid), "-ex", "thread apply all -c bt"]
            started = time.monotonic()
            with _modest_children():
                ran = host.run(argv, timeout_s=self.allow_pause_s, limit_bytes=16 * MIB, ok=(0, 1))
            seconds = time.monotonic() - started
            if _FRAME not in ran.stdout:
                raise AnswerBroken(f"{tool.name} shows no frame: {ran.stderr_tail[-200:]}")
        except TargetGone:
            raise
        except CollectError as error:
            yield gap_of(error, f"{self.name}/threads.txt", self.question)
            yield from _kernel_stacks(target, host)
            return
        yield Artifact(
            "threads.txt",
            ran.stdout,
            f"{tool.name} at process {target.pid}",
            facts={"tool": tool.name, "version": _version(host, tool)},
            pause=Pause(seconds, PauseBasis.AT_MOST),
        )


# -- the core --------------------------------------------------------------------------------------------------------


def _in_memory(chunks: list[bytes]) -> int:
    """
    A file in memory with these bytes, which are given up on the way.

    Not on the volume: a full or slow one must not cost the stacks, and nothing is left behind when we are killed.
    """
    fd = os.memfd_create("stacks.core", os.MFD_CLOEXEC)
    chunks.reverse()
    while chunks:
        view = memoryview(chunks.pop())
        while view:
            view = view[os.write(fd, view) :]
    return fd


def _core(target: Target, host: Host, fd: int, taken: Taken, allow_pause_s: float) -> Iterator[Artifact | Gap]:
    try:
        host.room_for(taken.written_bytes)
    except CollectError as error:
        yield gap_of(error, f"{ThreadsNative.name}/stacks.core")
        return
    settlement = settled(taken, allow_pause_s)
    yield Artifact(
        "stacks.core",
        host.iter_fd(fd),
        f"registers and stacks of process {target.pid}",
        CORE_MEDIA_TYPE,
        settlement.outcome,
        settlement.reason,
        settlement.facts,
        settlement.pause,
    )


# -- the tools -------------------------------------------------------------------------------------------------------


@contextmanager
def _modest_children() -> Iterator[None]:
    """Programs started from here may not take unlimited memory. Mapped files do not count."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = TOOL_DATA_BYTES if hard == resource.RLIM_INFINITY else min(TOOL_DATA_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _unwinders(target: Target, host: Host, core: str, taken: Taken) -> Iterator[tuple[Path, list[str | Path]]]:
    """
    The tools there are, the better one first.

    eu-stack is quicker by far and compares build IDs, but it looks for images under the names that the target uses:
    where these lead elsewhere from here, or to a newer file, gdb with a root of its own finds more.
    """
    # The tools show the name by which they were given the executable, so it is linked under its own.
    name = os.path.basename(target.exe or "") or "exe"
    _link(host.spool / "exe", f"/{name}", Path(f"/proc/{target.pid}/{taken.place}exe"))
    exe = host.spool / "exe" / name
    eu_stack, gdb = host.find_tool("eu-stack"), host.find_tool("gdb")
    code = [mapping for mapping in taken.layout.mappings if is_code_file(mapping)]
    same_view = target.same_mnt_ns and host.link_proc(f"{taken.place}root") == "/"
    eu_first = same_view and not any(mapping.deleted for mapping in code)
    for tool in (eu_stack, gdb) if eu_first else (gdb, eu_stack):
        if tool is None:
            continue
        if tool == eu_stack:
            yield tool, [tool, "-m", "-b", "-n", str(MAX_FRAMES), f"--core={core}", f"--executable={exe}"]
        else:
            setup = ["-iex", f"set sysroot {_sysroot(host, code, taken)}"]
            yield tool, [*_gdb(tool), *setup, "-ex", "thread apply all -c bt", exe, core]


def _gdb(tool: Path) -> list[str | Path]:
    """No init files, no scripts of the target's making."""
    return [tool, "-nx", "-nh", "-batch", *(word for line in GDB_SETUP for word in ("-iex", line))]


def _sysroot(host: Host, code: list[Mapping], taken: Taken) -> Path:
    """
    A folder with a link for every image, under every name by which the target knows it.

    The links lead through /proc/PID/map_files to the very file that is mapped, also when it was deleted or
    replaced; where the kernel does not allow that (CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE), to the file in the
    target's root, if it is still the same one. Links in the target's root are resolved inside it.
    """
    root = host.spool / "sysroot"
    names: dict[tuple[tuple[int, int], int], set[str]] = {}
    for found in taken.objects:
        mapping = taken.layout.find(found.dynamic)
        if mapping is not None and mapping.inode and found.name:
            names.setdefault((mapping.dev, mapping.inode), set()).add(found.name)
    done: set[tuple[tuple[int, int], int]] = set()
    for mapping in code[:MAX_SYSROOT_FILES]:
        key = (mapping.dev, mapping.inode)
        if key in done:
            continue
        done.add(key)
        place = _image(host, mapping, taken)
        if place is not None:
            for name in sorted({mapping.path} | names.get(key, set())):
                _link(root, name, place)
    return root


def _image(host: Host, mapping: Mapping, taken: Taken) -> Path | None:
    name = f"{taken.place}map_files/{mapping.start:x}-{mapping.end:x}"
    try:
        os.close(host.open_proc(name))
    except CollectError:
        path = inside_root(mapping.path, host.link_proc(f"{taken.place}root"))
        try:
            fd = host.open_target(path)
        except CollectError:
            return None
        try:
            # Not the device: file systems in layers show another one here than in maps.
            same = os.fstat(fd).st_ino == mapping.inode
        finally:
            os.close(fd)
        return host.target_path(path) if same else None
    return Path(f"/proc/{taken.pid}") / name


def _link(root: Path, name: str, place: Path) -> None:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not name.startswith("/") or ".." in parts or not parts:
        return
    link = root.joinpath(*parts)
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(place)
    except OSError:
        return  # a name too long, or a folder of one image where another has a file


class _UnwoundCheck:
    """Counts the threads in the words of eu-stack or gdb; whole when all that the core holds are there."""

    def __init__(self, tool: str, threads: int) -> None:
        self._tool = tool
        self._threads = threads
        self._shown = 0
        self._seen = 0
        self._rest = b""

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._seen += len(chunk)
        whole, _, self._rest = (self._rest + bytes(chunk)).rpartition(b"\n")
        self._shown += len(_THREAD_HEAD.findall(whole))

    def finish(self) -> Structure:
        """The verdict on all that was fed."""
        shape = Shape.WHOLE if self._shown >= self._threads else Shape.CUT
        says = f"{self._tool} shows {self._shown} of {self._threads} threads."
        return Structure(shape, self._seen, None, says, {"threads": self._shown})


def _telling(
    host: Host, tool: Path, argv: list[str | Path], source: str, threads: int, pause: Pause | None
) -> Artifact:
    """What a tool says, once it has shown a frame; raises its failure when it never does."""
    facts: dict[str, Json] = {"tool": tool.name, "version": _version(host, tool)}
    stream = host.stream(argv, timeout_s=host.remaining_s())
    begin = bytearray()
    for chunk in stream:
        begin += chunk
        if _FRAME in begin or len(begin) > CHUNK_BYTES // 2:
            break
    if _FRAME not in begin:
        raise AnswerBroken(f"{tool.name} shows no frame")
    check = _UnwoundCheck(tool.name, threads)

    def told() -> Iterator[bytes]:
        yield bytes(begin)
        try:
            yield from stream
        except ToolFailed as error:
            # eu-stack ends with 1 when one stack has no unwind information at its end (Go's runtime, JIT code):
            # with every thread shown that is a limit of unwinding, not a loss; the core has the bytes.
            if check.finish().shape is not Shape.WHOLE:
                raise
            facts["unwinding"] = error.message

    return Artifact(
        "threads.txt",
        checked(told(), check),
        source,
        facts=facts,
        pause=pause,
        settle=lambda: settlement_of(check.finish(), facts, pause),
    )


def _version(host: Host, tool: Path) -> str:
    try:
        ran = host.run([tool, "--version"], timeout_s=5.0, limit_bytes=64 * KIB)
    except CollectError:
        return ""
    return ran.stdout.partition(b"\n")[0].decode("utf-8", "replace")[:200]


# -- the kernel's view -----------------------------------------------------------------------------------------------


def _kernel_stacks(target: Target, host: Host) -> Iterator[Artifact | Gap]:
    """Where each thread sits inside the kernel; reading that stops nobody."""
    parts: list[bytes] = []
    refusal: CollectError | None = None
    tids = host.list_proc("task")
    for tid in tids[:MAX_KERNEL_STACKS]:
        try:
            stack = host.read_proc(f"task/{tid}/stack", 64 * KIB)
            comm = host.read_proc(f"task/{tid}/comm", KIB).strip()
        except TargetGone:
            host.check_alive()  # only this thread ended, or the whole process?
        except CollectError as error:
            refusal = error
        else:
            parts.append(b"TID %s (%s)\n%s\n" % (tid.encode(), comm, stack))
    wanted = f"{ThreadsNative.name}/kernel_stacks.txt"
    if not parts:
        if refusal is not None:
            yield gap_of(refusal, wanted)
        return
    yield Artifact(
        "kernel_stacks.txt",
        b"".join(parts),
        f"/proc/{target.pid}/task/*/stack",
        outcome=Outcome.COLLECTED if refusal is None else Outcome.PARTIAL,
        reason=None if refusal is None else reason_of(refusal),
        facts={"threads": len(parts)},
    )
