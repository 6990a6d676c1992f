"""
Hold every thread of a process still for as long as it takes to copy what is wanted, and let go for certain.

PTRACE_SEIZE leaves no mark on the target: a tracer that dies, even by SIGKILL, is cut off by the kernel and the
threads run on, whereas PTRACE_ATTACH leaves a stray SIGSTOP behind. PTRACE_INTERRUPT then stops a thread without
sending it a signal. Sources: ptrace(2), waitid(2), and the rules on group-stop in the kernel's ptrace.c.

What the target can notice: time passes, and a thread that waits in epoll_wait, semop, sigtimedwait, io_getevents or
an inotify read sees EINTR once, as after any stop (signal(7)).
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from pmforensics.collect.base import Host
from pmforensics.collect.pin import split_stat
from pmforensics.errors import AccessDenied, CollectError, NotSupported, TargetGone, ToolFailed
from pmforensics.formats.proc import parse_status
from pmforensics.model.capture import Pause, PauseBasis
from pmforensics.model.process import Target

EM_X86_64, EM_AARCH64 = 62, 183

PTRACE_DETACH = 17
PTRACE_GETSIGINFO = 0x4202
PTRACE_GETREGSET = 0x4204
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_GETSIGMASK = 0x420A
PTRACE_EVENT_STOP = 128
WALL = 0x40000000  # __WALL: threads as well as children

NT_PRSTATUS, NT_PRFPREG = 1, 2
NT_X86_XSTATE, NT_X86_SHSTK = 0x202, 0x204
NT_ARM_TLS, NT_ARM_SYSTEM_CALL, NT_ARM_SVE, NT_ARM_PAC_MASK = 0x401, 0x404, 0x405, 0x406

SIGINFO_BYTES = 128
STUCK_AFTER_S = 0.05  # a thread still in state D after this long waits for a device or a vfork child, not for a CPU
POLL_S = 0.0002
LATE_S = 1.0  # beyond the agreed time the kernel ends us, and with us the freeze
VECTOR_BYTES = 8 << 20  # XSAVE areas have up to 11 KiB; with thousands of threads they would outweigh the stacks
CAP_SYS_PTRACE = 19


@dataclass(frozen=True, slots=True)
class Machine:
    """
    Where one architecture keeps what we need; indexes count 64-bit words of the NT_PRSTATUS register set.

    arguments   the six system call arguments, in order
    tls         the thread pointer; None when it is in `regsets` as NT_ARM_TLS
    regsets     further register sets, by note type (ptrace uses the same numbers)
    """

    e_machine: int
    registers_bytes: int
    pc: int
    sp: int
    syscall: int
    arguments: tuple[int, ...]
    tls: int | None
    regsets: tuple[int, ...]
    red_zone_bytes: int


MACHINES = {
    "x86_64": Machine(
        EM_X86_64, 216, 16, 19, 15, (14, 13, 12, 7, 9, 8), 21, (NT_PRFPREG, NT_X86_XSTATE, NT_X86_SHSTK), 128
    ),
    "aarch64": Machine(
        EM_AARCH64, 272, 32, 31, 8, (0, 1, 2, 3, 4, 5), None,
        (NT_PRFPREG, NT_ARM_TLS, NT_ARM_SYSTEM_CALL, NT_ARM_PAC_MASK, NT_ARM_SVE), 0,
    ),
}  # fmt: skip
VECTOR_SETS = frozenset({NT_X86_XSTATE, NT_ARM_SVE})


@dataclass(frozen=True, slots=True)
class FrozenThread:
    """
    One thread and its registers.

    registers   the NT_PRSTATUS register set, in the target's byte order
    regsets     (note type, bytes) of the further register sets
    signal      a signal that was about to be delivered when the thread stopped; 0 for none
    siginfo     its siginfo_t, b"" for none
    blocked     the signal mask
    stopped     False: it did not stop; only pc, sp and the system call are known, the other registers are zero
    """

    tid: int
    machine: Machine
    registers: bytes
    regsets: tuple[tuple[int, bytes], ...] = ()
    signal: int = 0
    siginfo: bytes = b""
    blocked: int = 0
    stopped: bool = True

    @property
    def pc(self) -> int:
        """Program counter."""
        return self._word(self.machine.pc)

    @property
    def sp(self) -> int:
        """Stack pointer."""
        return self._word(self.machine.sp)

    @property
    def thread_pointer(self) -> int:
        """Where thread-local storage is anchored; 0 when not known."""
        if self.machine.tls is not None:
            return self._word(self.machine.tls)
        anchor = dict(self.regsets).get(NT_ARM_TLS, b"")
        return int(struct.unpack_from("=Q", anchor)[0]) if len(anchor) >= 8 else 0

    def _word(self, index: int) -> int:
        return int(struct.unpack_from("=Q", self.registers, 8 * index)[0])


def machine_of(target: Target) -> Machine:
    """How to read this target's registers; NotSupported for 32-bit programs and other architectures."""
    machine = MACHINES.get(os.uname().machine)
    if machine is None:
        raise NotSupported(f"registers of {os.uname().machine} are not known to pmf")
    if target.elf_class not in (0, 64) or target.machine not in (0, machine.e_machine):
        raise NotSupported(
            f"the target is a {target.elf_class}-bit program of ELF machine {target.machine};"
            f" pmf freezes 64-bit {os.uname().machine} programs"
        )
    return machine


class Freeze:
    """
    A process whose threads stand still. Made by `freeze`; not to be shared between threads of ours.

    pid        of the process; its registers are those of `machine`
    threads    those that stopped, the leader first, then those of which only pc and sp are known
    left_out   thread id -> state letter of every thread that did not stop in time
    """

    def __init__(self, target: Target, machine: Machine) -> None:
        import ctypes

        self.threads: list[FrozenThread] = []
        self.left_out: dict[int, str] = {}
        self.vector_sets_dropped = 0
        self.pid = target.pid
        self.machine = machine
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._ptrace = self._libc.ptrace
        self._ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self._ptrace.restype = ctypes.c_long
        self._seized: set[int] = set()
        self._stops: dict[int, int] = {}  # thread id -> signal to give back when it is let go
        self._started = 0.0
        self._ended = 0.0
        self._nice: int | None = None

    # -- what the caller sees ------------------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether threads stand still now."""
        return bool(self._started) and not self._ended

    @property
    def seconds(self) -> float:
        """How long the target has stood still: first interrupt to last detach, or to now."""
        if not self._started:
            return 0.0
        return (self._ended or time.monotonic()) - self._started

    @property
    def pause(self) -> Pause:
        """The same as a Pause; final once `release` has run."""
        return Pause(self.seconds, PauseBasis.MEASURED)

    @property
    def a_thread(self) -> int:
        """The id of a thread that surely has the address space: the leader may have exited before the others."""
        return self.threads[0].tid

    def release(self) -> None:
        """
        Let every thread run, with the signal it was about to receive. Idempotent.

        A thread that has not stopped yet cannot be detached: it is let go the moment it does, and by our end at the
        latest.
        """
        with _uninterrupted():
            killed = [tid for tid, signum in self._stops.items() if self._ptrace(PTRACE_DETACH, tid, None, signum) != 0]
            if self._started and not self._ended:
                self._ended = time.monotonic()
            self._seized -= self._stops.keys()
            self._stops.clear()
            for tid in killed:
                self._reap(tid)
            if self._seized:
                signal.signal(signal.SIGCHLD, lambda _signum, _frame: self._let_go_late())
                self._let_go_late()
            signal.setitimer(signal.ITIMER_REAL, 0)
            if self._nice is not None:
                os.setpriority(os.PRIO_PROCESS, 0, self._nice)
                self._nice = None

    # -- stopping ------------------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """
        Ask for the CPU until `release`: on a busy machine the target would stand still while we wait for our turn.

        With 5 processes for 2 CPUs the pause for 20 threads fell from 8 to 1.6 ms (median of 9).
        """
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        try:
            os.setpriority(os.PRIO_PROCESS, 0, -20)
        except OSError:
            return  # needs CAP_SYS_NICE
        self._nice = nice

    def seize(self, tids: list[int]) -> None:
        """Become the tracer of these threads; none of them stops yet."""
        for tid in tids:
            if tid in self._seized or tid in self.left_out:
                continue
            if self._ptrace(PTRACE_SEIZE, tid, None, None) == 0:
                self._seized.add(tid)
                continue
            refusal = self._errno()
            state = self._state(tid)
            if state in ("", "Z", "X") or refusal == errno.ESRCH:
                continue  # exited; a leader that has exited stays visible as a zombie
            raise PermissionError(refusal, os.strerror(refusal))

    def stop(self, stop_within_s: float) -> None:
        """Stop every thread, those that are born meanwhile too, and copy the registers."""
        self._started = time.monotonic()
        give_up = self._started + stop_within_s
        waiting = set(self._seized)
        for tid in waiting:
            self._ptrace(PTRACE_INTERRUPT, tid, None, None)  # ESRCH: exited; noticed while waiting
        clean = 0
        # Once all known threads stand, only unknown ones can start more. One listing can miss a thread when
        # another one ends while the kernel walks the list, so two in a row must show nothing new.
        while clean < 2:
            self._await(waiting, give_up)
            fresh = [tid for tid in self._tids() if tid not in self._seized and tid not in self.left_out]
            before = len(self._seized)
            self.seize(fresh)
            clean = clean + 1 if len(self._seized) == before else 0
            if clean == 0 and time.monotonic() >= give_up:
                raise ToolFailed(f"the threads of process {self.pid} start faster than they can be stopped")
            waiting = {tid for tid in fresh if tid in self._seized}
            for tid in waiting:
                self._ptrace(PTRACE_INTERRUPT, tid, None, None)
        self._copy_registers()

    def _await(self, waiting: set[int], give_up: float) -> None:
        stuck_at = time.monotonic() + STUCK_AFTER_S
        while True:
            for tid in tuple(waiting):
                if self._has_stopped_or_ended(tid):
                    waiting.discard(tid)
            if not waiting:
                return
            now = time.monotonic()
            if now >= stuck_at or now >= give_up:
                for tid in tuple(waiting):
                    state = self._state(tid)
                    if state in ("", "Z", "X"):
                        waiting.discard(tid)
                        self._seized.discard(tid)
                    elif state == "D" or now >= give_up:
                        waiting.discard(tid)
                        self.left_out[tid] = state
                stuck_at = now + STUCK_AFTER_S
            time.sleep(POLL_S)

    def _has_stopped_or_ended(self, tid: int) -> bool:
        """
        Look whether a thread has stopped, without taking the news from the kernel.

        A wait that takes it also takes the signal that a thread is about to receive: were we killed after that, the
        kernel would let the thread go without its signal. WNOWAIT leaves it where it is.
        """
        try:
            news = os.waitid(os.P_PID, tid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT | WALL)
        except ChildProcessError:
            self._seized.discard(tid)
            return True
        if news is None:
            return False
        if news.si_code in (os.CLD_TRAPPED, os.CLD_STOPPED):
            event, signum = news.si_status >> 8, news.si_status & 0x7F
            self._stops[tid] = 0 if event == PTRACE_EVENT_STOP else signum
            return True
        self._seized.discard(tid)
        self._reap(tid)
        return True

    def _reap(self, tid: int) -> None:
        """Take the news of a thread's end: its other threads may wait for that (execve does)."""
        try:
            os.waitpid(tid, os.WNOHANG | WALL)
        except ChildProcessError:
            return

    def _let_go_late(self) -> None:
        for tid in tuple(self._seized):
            if self._has_stopped_or_ended(tid) and (signum := self._stops.pop(tid, None)) is not None:
                self._ptrace(PTRACE_DETACH, tid, None, signum)
                self._seized.discard(tid)

    # -- reading -------------------------------------------------------------------------------------------------

    def _copy_registers(self) -> None:
        import ctypes

        class Iovec(ctypes.Structure):
            _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

        room = ctypes.create_string_buffer(1 << 16)
        vector = Iovec(ctypes.addressof(room), len(room))

        def regset(tid: int, kind: int) -> bytes:
            vector.length = len(room)
            if self._ptrace(PTRACE_GETREGSET, tid, kind, ctypes.addressof(vector)) != 0:
                return b""  # this processor has no such registers, or the thread was killed
            return ctypes.string_at(room, vector.length)

        vector_bytes = 0
        # The leader comes first: debuggers show the first thread of a core as the current one.
        for tid in sorted(self._stops, key=lambda tid: (tid != self.pid, tid)):
            registers = regset(tid, NT_PRSTATUS)
            if not registers:
                continue
            if len(registers) != self.machine.registers_bytes:
                self.left_out[tid] = "32-bit"
                continue
            sets = []
            for kind in self.machine.regsets:
                if kind in VECTOR_SETS and vector_bytes > VECTOR_BYTES:
                    self.vector_sets_dropped += 1
                    continue
                if content := regset(tid, kind):
                    sets.append((kind, content))
                    vector_bytes += len(content) if kind in VECTOR_SETS else 0
            signum = self._stops[tid]
            siginfo = b""
            if signum and self._ptrace(PTRACE_GETSIGINFO, tid, None, ctypes.addressof(room)) == 0:
                siginfo = ctypes.string_at(room, SIGINFO_BYTES)
            blocked = 0
            if self._ptrace(PTRACE_GETSIGMASK, tid, 8, ctypes.addressof(room)) == 0:
                blocked = int(struct.unpack_from("=Q", room)[0])
            self.threads.append(FrozenThread(tid, self.machine, registers, tuple(sets), signum, siginfo, blocked))
        for tid, state in self.left_out.items():
            thread = self._from_syscall(tid) if state != "32-bit" else None
            if thread is not None:
                self.threads.append(thread)

    def _from_syscall(self, tid: int) -> FrozenThread | None:
        """
        Where a thread that did not stop sits in the kernel, and its stack pointer.

        Source: /proc/PID/task/TID/syscall, proc(5): number, six arguments, sp, pc; or -1, sp, pc; or "running".
        """
        try:
            numbers = [int(word, 0) for word in self._read(f"task/{tid}/syscall").split()]
        except ValueError:
            return None
        if len(numbers) not in (3, 9):
            return None
        registers = bytearray(self.machine.registers_bytes)

        def put(index: int, value: int) -> None:
            struct.pack_into("=Q", registers, 8 * index, value & 0xFFFFFFFFFFFFFFFF)

        put(self.machine.syscall, numbers[0])
        for index, value in zip(self.machine.arguments, numbers[1:-2], strict=False):
            put(index, value)
        put(self.machine.sp, numbers[-2])
        put(self.machine.pc, numbers[-1])
        return FrozenThread(tid, self.machine, bytes(registers), stopped=False)

    # While the target is held nothing goes through the host: it reports every touch over a pipe, and a reader that
    # is slow to take the report would prolong the hold. A tracee keeps its process id from being used again.

    def _tids(self) -> list[int]:
        try:
            return [int(name) for name in os.listdir(f"/proc/{self.pid}/task")]
        except OSError:
            return []

    def _read(self, name: str) -> bytes:
        try:
            fd = os.open(f"/proc/{self.pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            return os.read(fd, 4096)
        except OSError:
            return b""
        finally:
            os.close(fd)

    def _state(self, tid: int) -> str:
        """One letter as in /proc/PID/task/TID/stat; "" when the thread is gone."""
        _, fields = split_stat(self._read(f"task/{tid}/stat"))
        return fields[0].decode() if fields else ""

    def _errno(self) -> int:
        import ctypes

        return ctypes.get_errno()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextmanager
def freeze(target: Target, host: Host, *, stop_within_s: float, hold_at_most_s: float) -> Iterator[Freeze]:
    """
    Stop all threads of the target; let them go at the end of the block, or at `release`.

    stop_within_s    threads that have not stopped by then are left out (state D after STUCK_AFTER_S already)
    hold_at_most_s   what the caller means to keep to. A second later a timer of the kernel's ends this process,
                     even one that hangs in a read of the target's memory, and thereby the freeze

    To be called in the main thread of a process that may be lost. Errors: AccessDenied with the reason that can be
    read, NotSupported, TargetGone, ToolFailed.
    """
    frozen = Freeze(target, machine_of(target))
    tids = [int(name) for name in host.list_proc("task")]
    try:
        with _uninterrupted():
            try:
                frozen.seize(tids)
                host.check_alive()  # else the ids could belong to a successor by now
                _end_this_process_after(hold_at_most_s + LATE_S)
                frozen.hurry()
                frozen.stop(stop_within_s)
            except PermissionError:
                frozen.release()
                raise why_refused(target, host) from None
        if not frozen.threads:
            host.check_alive()
            if frozen.left_out:
                count = len(frozen.left_out)
                raise ToolFailed(
                    f"none of the {count} threads of process {target.pid} stopped within {stop_within_s:g} s",
                    hint="Is its cgroup frozen or without CPU time? Their kernel stacks tell where they are.",
                )
            raise TargetGone(f"process {target.pid} has no thread left that could be stopped")
        yield frozen
    finally:
        frozen.release()
        left = "".join(f", {tid} not stopped ({state})" for tid, state in list(frozen.left_out.items())[:8])
        host.note(
            "freeze",
            f"{len(frozen.threads)} threads of {target.pid}{left}",
            "released" if frozen.threads else "nothing held",
            frozen.seconds,
        )


def _end_this_process_after(seconds: float) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, seconds)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """SIGTERM raises an exception in a collector: it must not come between two threads that are let go."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def why_refused(target: Target, host: Host) -> AccessDenied:
    """The refusal of PTRACE_SEIZE in words: the first reason that can be read off the machine."""
    status = parse_status(host.read_proc("status").decode("utf-8", "replace"))
    ours = parse_status(host.read("/proc/self/status").decode("utf-8", "replace"))
    tracer = status.get("TracerPid", "0")
    if tracer != "0":
        name = _line(host, f"/proc/{tracer}/comm")
        return AccessDenied(
            f"process {target.pid} is already traced by process {tracer}{f' ({name})' if name else ''}",
            hint=f"A process has one tracer at a time: end process {tracer} first.",
        )
    filtered = ours.get("Seccomp") == "2"
    seccomp = " pmf itself runs under a seccomp filter, which may forbid ptrace." if filtered else ""
    capable = int(ours.get("CapEff", "0"), 16) >> CAP_SYS_PTRACE & 1
    if not capable:
        theirs, own = status.get("Uid", "").split(), ours.get("Uid", "").split()
        if theirs[:3] != own[:3]:
            return AccessDenied(
                f"process {target.pid} runs as uid {target.uid}, pmf as uid {os.geteuid()}, without CAP_SYS_PTRACE",
                hint=f"Run pmf as root, as uid {target.uid}, or give it CAP_SYS_PTRACE.{seccomp}",
            )
        scope = _line(host, "/proc/sys/kernel/yama/ptrace_scope")
        if scope not in ("", "0"):
            return AccessDenied(
                f"this machine restricts ptrace (kernel.yama.ptrace_scope is {scope}) and pmf lacks CAP_SYS_PTRACE",
                hint=f"Run pmf as root or give it CAP_SYS_PTRACE.{seccomp}",
            )
        return AccessDenied(
            f"process {target.pid} may not be traced: pmf lacks CAP_SYS_PTRACE"
            f" (a program that changed its identity, or that forbids it with prctl, needs it)",
            hint=f"Run pmf as root or give it CAP_SYS_PTRACE.{seccomp}",
        )
    scope = _line(host, "/proc/sys/kernel/yama/ptrace_scope")
    if scope == "3":
        return AccessDenied(
            "this machine forbids ptrace to everybody (kernel.yama.ptrace_scope is 3)",
            hint="Only a reboot with another setting changes that.",
        )
    return AccessDenied(
        f"the kernel refused to let pmf trace process {target.pid}, although pmf has CAP_SYS_PTRACE",
        hint="A security module (AppArmor, SELinux) or the target's user namespace forbids it;"
        f" run pmf on the host, outside the container.{seccomp}",
    )


def _line(host: Host, path: str) -> str:
    try:
        return host.read(path, 4096).decode("utf-8", "replace").strip()
    except CollectError:
        return ""
