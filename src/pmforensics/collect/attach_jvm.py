"""
HotSpot's dynamic attach, spoken over its own Unix socket: no second JVM, nothing but a JRE needed in the container.

A HotSpot JVM listens on /tmp/.java_pidN (N: its pid as it sees itself) once it has been asked to: somebody creates
/tmp/.attach_pidN, owned by the JVM's user, and sends SIGQUIT. A request is the protocol version, the name of an
operation and three arguments, each ended by NUL; the answer is a result code, a newline and text until the end of
the connection. The operation "jcmd" takes a diagnostic command. Sources: OpenJDK's attachListener.cpp,
attachListener_posix.cpp and os_linux.cpp (8 to 25).

What can go wrong, and what is done about it:

- A JVM without a handler for SIGQUIT (-Xrs, still starting, not a JVM after all) dies of it: SigCgt is read first.
  A JVM under -Xrs listens from its start, so an existing socket is used before any signal is thought of.
- Anybody may create files in /tmp. The socket must belong to the target's user, and the process that listens on it
  (SO_PEERCRED) must be the target: two containers that share /tmp both have a .java_pid1.
- From JDK 24 on, the answer is written to the socket while the VM stands at the safepoint: a reader that dawdles
  holds up the whole VM (25.0.3: 3.5 s, for as long as nothing was read). "streaming=0" makes it answer afterwards,
  from a buffer, as earlier versions do. tests/collect/test_attach_jvm.py holds both.
- OpenJ9 answers SIGQUIT with a javacore file in its working directory: it is recognised and left alone.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pmforensics.collect.base import Host
from pmforensics.errors import (
    AccessDenied,
    AnswerBroken,
    CollectError,
    DeadlinePassed,
    FormatError,
    NotSupported,
    NotThere,
    TargetGone,
    ToolFailed,
    WouldHarm,
)
from pmforensics.formats.heap_info import HeapInfo, parse_heap_info
from pmforensics.formats.proc import parse_status, signal_caught
from pmforensics.model.capture import KIB, MIB, Json
from pmforensics.model.process import Runtime, Target

if TYPE_CHECKING:
    import socket

TMP = "/tmp"  # noqa: S108 - os::get_temp_directory() on Linux in every version; java.io.tmpdir does not move it
WAKE_S = 5.0  # an idle JVM needs 2 ms; the JDK's own client waits up to 10 s
ANSWER_S = 8.0  # a full garbage collection of a sick heap takes seconds
# For whoever comes after the first thread dump: a VM that is wedged over that one serves nobody else, and the time is
# better spent on native stacks and a core.
SECOND_PATIENCE_S = 3.0
PIECE_BYTES = 256 * KIB  # larger than the socket's buffer
MAX_COMMAND_BYTES = 1024  # AttachOperation::arg_length_max
MAX_RESULT_BYTES = 16  # the line with the result code
MAX_COMPLAINT_BYTES = 4 * KIB
MAX_ANSWER_BYTES = 16 * MIB
MAX_MAPS_BYTES = 64 * MIB

SOCKET, JCMD = "attach socket", "jcmd"

_WEDGED_HINT = (
    "It may be unable to reach a safepoint, or be in a long garbage collection; native stacks and a core still tell."
)
_VERSION = re.compile(rb"^JDK (\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What came back from the JVM.

    waited_s   from the request to the first byte; a command that stops the VM has let it go by then
    chunks     the text that follows; raises DeadlinePassed, TargetGone, AnswerBroken
    """

    waited_s: float
    chunks: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Jvm:
    """
    A HotSpot JVM that takes diagnostic commands. Get one from `attach`.

    route      SOCKET, or JCMD when the socket is out of reach and the JDK's program is there
    feature    the JDK's feature version (8, 17, 25), 0 when it does not say
    version    first line of VM.version
    buffered   it must be told to answer from a buffer
    """

    target: Target
    host: Host
    route: str
    tmp_fd: int = -1
    jcmd: Path | None = None
    feature: int = 0
    version: str = ""
    buffered: bool = False

    def facts(self) -> dict[str, Json]:
        """For the manifest: which JVM, and by which way it was asked."""
        return {"route": self.route, "jvm": self.version}

    def call(self, command: str, *, timeout_s: float = ANSWER_S) -> Answer:
        """
        Give one diagnostic command ("Thread.print -l") and wait until the JVM begins to answer.

        Errors: DeadlinePassed (no answer in time), ToolFailed (the JVM refuses the command), AccessDenied (it
        hangs up, or the socket cannot be trusted), TargetGone, AnswerBroken.
        """
        if self.route == JCMD:
            return self._run_jcmd(command, timeout_s)
        return self._ask("jcmd streaming=0" if self.buffered else "jcmd", command, timeout_s)

    def read(self, command: str, *, timeout_s: float = ANSWER_S, limit_bytes: int = MAX_ANSWER_BYTES) -> bytes:
        """The whole answer; AnswerBroken above the limit."""
        parts: list[bytes] = []
        total = 0
        for chunk in self.call(command, timeout_s=timeout_s).chunks:
            total += len(chunk)
            if total > limit_bytes:
                raise AnswerBroken(f"the JVM's answer to {command.split()[0]} is longer than {limit_bytes} bytes")
            parts.append(chunk)
        return b"".join(parts)

    def heap(self) -> HeapInfo:
        """How full the heap is; of a JDK 8 without GC.heap_info, the resident memory is the upper bound."""
        try:
            text = self.read("GC.heap_info", limit_bytes=64 * KIB).decode("utf-8", "replace")
        except ToolFailed:
            text = ""
        heap = parse_heap_info(text)
        if heap.used_bytes is not None:
            return heap
        status = parse_status(self.host.read_proc("status").decode("utf-8", "replace"))
        kib = [int(value.split()[0]) for name in ("VmRSS", "VmSwap") if (value := status.get(name))]
        return replace(heap, used_bytes=sum(kib) * KIB)

    def introduced(self, patience_s: float) -> Jvm:
        """The same JVM, after it has said which it is and how it answers; neither needs a safepoint."""
        if self.route == SOCKET:
            try:
                # "2 streaming"; before JDK 24 the operation is not known.
                options = b"".join(self._ask("getversion", "options", patience_s).chunks)
            except ToolFailed:
                options = b""
            said = replace(self, buffered=b"streaming" in options)
        else:
            said = self
        version = said.read("VM.version", timeout_s=patience_s, limit_bytes=64 * KIB)
        feature = _VERSION.search(version)
        first_line = version.partition(b"\n")[0].decode("utf-8", "replace")[:200]
        return replace(said, feature=int(feature[1]) if feature else 0, version=first_line)

    def _ask(self, operation: str, argument: str, timeout_s: float) -> Answer:
        if len(os.fsencode(argument)) > MAX_COMMAND_BYTES:
            raise NotSupported(f"the command is longer than {MAX_COMMAND_BYTES} bytes")
        shown = f"{argument if operation.startswith('jcmd') else operation} over {TMP}/{_socket_name(self.target)}"
        started = time.monotonic()
        result = "failed"
        try:
            give_up = started + max(0.0, min(timeout_s, self.host.remaining_s()))
            connection = _connect(self.target, self.tmp_fd, give_up)
            if connection is None:
                connection = _wake(self.target, self.host, self.tmp_fd)
                give_up = time.monotonic() + max(0.0, min(timeout_s, self.host.remaining_s()))
            sent = time.monotonic()
            pieces = _converse(connection, operation, argument, give_up, self.host)
            head = b""
            for piece in pieces:
                head += piece
                if b"\n" in head or len(head) > MAX_RESULT_BYTES:
                    break
            waited_s = time.monotonic() - sent
            code, newline, rest = head.partition(b"\n")
            if not head:
                self.host.check_alive()
                raise AccessDenied(
                    "the JVM hung up without an answer",
                    hint=f"It serves only its own user: run pmf as root, or as uid {self.target.uid} and gid"
                    f" {self.target.gid}.",
                )
            if not newline or not re.fullmatch(rb"-?\d+", code):
                raise AnswerBroken(f"the JVM's answer to {argument.split()[0]} does not begin with a result code")
            if code != b"0":
                result = f"code {code.decode()}"
                raise ToolFailed(f"the JVM refuses {argument.split()[0]}: {_complaint(rest, pieces)}")
            result = "ok"
        except CollectError as error:
            result = error.code if result == "failed" else result
            raise
        finally:
            self.host.note("attach", shown, result, time.monotonic() - started)
        return Answer(waited_s, _with(rest, pieces))

    def _run_jcmd(self, command: str, timeout_s: float) -> Answer:
        _refuse_signal(self.target, self.host)  # jcmd sends SIGQUIT too, and some versions do not look before
        assert self.jcmd is not None
        started = time.monotonic()
        ran = self.host.run(
            # Else JDK 24 and later hold the VM still until jcmd has read everything.
            [self.jcmd, "-J-Djdk.attach.allowStreamingOutput=false", str(self.target.pid), command],
            timeout_s=timeout_s,
            as_target_user=True,
        )
        text = ran.stdout.removeprefix(b"%d:\n" % self.target.pid)
        return Answer(time.monotonic() - started, iter((text,)))


@contextmanager
def attach(target: Target, host: Host, *, patience_s: float = ANSWER_S) -> Iterator[Jvm]:
    """
    A JVM, awake and introduced: `patience_s` is how long it may take to say its version.

    Errors: NotSupported (OpenJ9), WouldHarm (it does not catch SIGQUIT, or is stopped), AccessDenied (attaching
    is disabled, the socket cannot be trusted, /tmp is not writable for it), DeadlinePassed, TargetGone.
    """
    _refuse_stopped(host)
    try:
        tmp_fd = open_tmp(target, host)
    except CollectError:
        jcmd = host.find_tool("jcmd")
        if jcmd is None:
            raise
        yield Jvm(target, host, JCMD, jcmd=jcmd).introduced(patience_s)
        return
    try:
        yield Jvm(target, host, SOCKET, tmp_fd).introduced(patience_s)
    finally:
        os.close(tmp_fd)


def open_tmp(target: Target, host: Host) -> int:
    """
    A descriptor of the target's /tmp, for use as dir_fd; the caller closes it.

    Errors: AccessDenied, NotThere, TargetGone.
    """

    def open_it() -> int:
        try:
            return os.open(host.target_path(TMP), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise NotThere(f"the target's {TMP}: {error.strerror}; HotSpot puts its attach socket there") from None

    try:
        tmp_fd = open_it()
    except AccessDenied:
        # Root without CAP_SYS_PTRACE, as in most containers, may not look into another user's process; that user may.
        with as_target(target):
            tmp_fd = open_it()
    try:
        host.check_alive()  # the path went through /proc/PID: it was the target's, if the target still lives
    except TargetGone:
        os.close(tmp_fd)
        raise
    return tmp_fd


@contextmanager
def as_target(target: Target) -> Iterator[None]:
    """
    For a moment, act with the target's effective uid and gid, when we are root: HotSpot serves only its own user.

    AccessDenied without CAP_SETUID or CAP_SETGID.
    """
    if os.geteuid() != 0 or (target.uid, target.gid) == (0, os.getegid()):
        yield
        return
    own_gid = os.getegid()
    try:
        os.setegid(target.gid)
        os.seteuid(target.uid)
    except OSError as error:
        os.setegid(own_gid)
        raise AccessDenied(
            f"pmf cannot act as uid {target.uid} ({error.strerror})", hint="Give pmf CAP_SETUID and CAP_SETGID."
        ) from None
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(own_gid)


# -- the socket ------------------------------------------------------------------------------------------------------


def _socket_name(target: Target) -> str:
    return f".java_pid{target.own_pid}"


def _connect(target: Target, tmp_fd: int, give_up: float) -> socket.socket | None:
    """A connection to the target itself, or None when nobody listens there."""
    import socket

    name = _socket_name(target)
    while True:
        try:
            found = os.stat(name, dir_fd=tmp_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != target.uid:
            what = f"belongs to uid {found.st_uid}" if stat.S_ISSOCK(found.st_mode) else "is not a socket"
            raise AccessDenied(
                f"{TMP}/{name} {what}: somebody else put it there",
                hint="Find out who did, remove it, and capture again.",
            )
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(max(0.01, give_up - time.monotonic()))
            with as_target(target):
                connection.connect(f"/proc/self/fd/{tmp_fd}/{name}")
            pid, _, _ = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if pid != target.pid:
                raise AccessDenied(
                    f"{TMP}/{name} is served by {f'process {pid}' if pid else 'a process outside our view'},"
                    " not by the target",
                    hint="Two containers that share /tmp answer to the same name: give each its own.",
                )
        except (ConnectionRefusedError, FileNotFoundError):
            connection.close()
            return None  # a socket that a dead JVM left behind
        except (BlockingIOError, TimeoutError):
            connection.close()  # as many clients as it allows are waiting already
            if time.monotonic() >= give_up:
                raise DeadlinePassed(
                    "the JVM does not take requests: others wait in line already", hint=_WEDGED_HINT
                ) from None
            time.sleep(0.01)
            continue
        except OSError as error:
            connection.close()
            raise AccessDenied(f"{TMP}/{name}: {error.strerror}") from None
        except BaseException:
            connection.close()
            raise
        return connection


def _converse(connection: socket.socket, operation: str, argument: str, give_up: float, host: Host) -> Iterator[bytes]:
    """Send the request, yield the answer as it comes, close."""
    import socket

    request = b"1\0" + operation.encode() + b"\0" + os.fsencode(argument) + b"\0\0\0"
    verb = argument.split()[0]
    started = time.monotonic()
    got = 0
    try:
        connection.settimeout(max(0.01, give_up - started))
        connection.sendall(request, socket.MSG_NOSIGNAL)
        while True:
            connection.settimeout(max(0.01, give_up - time.monotonic()))
            piece = connection.recv(PIECE_BYTES)
            if not piece:
                return
            got += len(piece)
            yield piece
            if got > MAX_RESULT_BYTES:
                # It answers: from here on only the collector's own time counts.
                give_up = time.monotonic() + host.remaining_s()
    except TimeoutError:
        host.check_alive()
        how = f"went silent after {got:,} bytes of" if got else "did not answer"
        raise DeadlinePassed(
            f"the JVM {how} {verb} within {time.monotonic() - started:.1f} s", hint=_WEDGED_HINT
        ) from None
    except (ConnectionResetError, BrokenPipeError):
        host.check_alive()
        if got:
            raise AnswerBroken(f"the JVM broke off after {got:,} bytes of {verb}") from None
    finally:
        connection.close()


def _with(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from rest


def _complaint(head: bytes, rest: Iterator[bytes]) -> str:
    """The first line of what the JVM says about a command that it refuses."""
    text = head
    for piece in rest:
        text += piece
        if len(text) > MAX_COMPLAINT_BYTES:
            break
    lines = text[:MAX_COMPLAINT_BYTES].decode("utf-8", "replace").strip().splitlines()
    return lines[0][:300] if lines else "no reason given"


# -- waking it -------------------------------------------------------------------------------------------------------


def _wake(target: Target, host: Host, tmp_fd: int) -> socket.socket:
    """Make the JVM listen: attach file, SIGQUIT, wait for its socket; the file is removed however this ends."""
    _refuse_other_vm(target, host)
    _refuse_signal(target, host)
    _refuse_disabled(target, host)
    started = time.monotonic()
    folder_fd, is_ours = _create_attach_file(target, host, tmp_fd)
    name = _attach_name(target)
    try:
        host.signal(signal.SIGQUIT)
        give_up = time.monotonic() + min(WAKE_S, max(0.0, host.remaining_s()))
        pause_s = 0.0005
        while True:
            connection = _connect(target, tmp_fd, give_up)
            if connection is not None:
                return connection
            host.check_alive()
            if time.monotonic() >= give_up:
                break
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.05)
    finally:
        if is_ours:
            with suppress(FileNotFoundError):  # the target's user may clean up behind us
                os.unlink(name, dir_fd=folder_fd)
        if folder_fd != tmp_fd:
            os.close(folder_fd)
    host.check_deadline()
    raise AccessDenied(
        f"the JVM opened no attach socket within {time.monotonic() - started:.1f} s of SIGQUIT",
        hint="Attaching is disabled (-XX:+DisableAttachMechanism), or the VM is wedged: then native stacks and a core"
        " still tell. It may have printed its threads to its own stdout instead.",
    )


def _attach_name(target: Target) -> str:
    return f".attach_pid{target.own_pid}"


def _create_attach_file(target: Target, host: Host, tmp_fd: int) -> tuple[int, bool]:
    """
    The folder that holds the attach file now, and whether the file is ours to remove.

    The JDK's client takes the target's working directory first. HotSpot looks in both, and its socket goes to /tmp
    whatever happens: so /tmp comes first here, where nobody watches for new files as some do in a deployment folder.
    """
    name = _attach_name(target)
    state = _try_create(name, tmp_fd, target)
    if state is not None:
        host.note("create", f"{TMP}/{name} (as the target sees it), removed again")
        return tmp_fd, state
    try:
        folder_fd = os.open(f"/proc/{target.pid}/cwd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise AccessDenied(f"the target's working directory: {error.strerror}") from None
    try:
        host.check_alive()
        state = _try_create(name, folder_fd, target)
        if state is None:
            raise AccessDenied(
                f"{name} exists in {TMP} and in the target's working directory, and belongs to somebody else",
                hint="Remove both files and capture again.",
            )
    except BaseException:
        os.close(folder_fd)
        raise
    host.note("create", f"{name} in the target's working directory, removed again")
    return folder_fd, state


def _try_create(name: str, folder_fd: int, target: Target) -> bool | None:
    """True: created. False: it is there already and will do. None: somebody else's file has the name."""
    try:
        with as_target(target):
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder_fd)
        os.close(fd)
        return True
    except FileExistsError:
        found = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
        return False if stat.S_ISREG(found.st_mode) and found.st_uid == target.uid else None
    except OSError as error:
        raise AccessDenied(
            f"nothing can be created in the target's {TMP} as uid {target.uid} ({error.strerror}),"
            " so the JVM cannot open its attach socket there",
            hint=f"Mount a writable {TMP} into the container; native stacks and a core need none.",
        ) from None


# -- when not to -----------------------------------------------------------------------------------------------------


def _refuse_stopped(host: Host) -> None:
    """A stopped JVM answers nothing; worse, it would act on our signal once it is continued, long after we left."""
    state = parse_status(host.read_proc("status").decode("utf-8", "replace")).get("State", "?")
    if state[:1] in ("T", "t"):
        raise WouldHarm(
            f"the process is stopped (state {state}): it cannot answer now, and would act on the signal later",
            hint="Continue it first (kill -CONT), or find out who traces it (TracerPid in /proc/PID/status).",
        )
    if state[:1] in ("Z", "X"):
        raise TargetGone(f"the process has exited (state {state})")


def _refuse_signal(target: Target, host: Host) -> None:
    if Runtime.GO in target:
        raise WouldHarm("the process also runs Go code, and SIGQUIT ends a Go process")
    status = host.read_proc("status").decode("utf-8", "replace")
    try:
        caught = signal_caught(status, signal.SIGQUIT)
    except FormatError as error:
        raise WouldHarm(f"it is not known whether the process survives SIGQUIT: {error.message}") from None
    if not caught:
        raise WouldHarm(
            "the process does not catch SIGQUIT: the signal that wakes the JVM's attach listener would kill it",
            hint="It is still starting, or runs with -Xrs. Wait and capture again; native stacks and a core need"
            " no signal.",
        )


def _refuse_other_vm(target: Target, host: Host) -> None:
    if b"/libj9vm" in host.read_proc("maps", MAX_MAPS_BYTES):
        raise NotSupported(
            "this JVM is OpenJ9, which has no HotSpot attach socket and answers SIGQUIT with a javacore in its folder",
            hint="Use its own jcmd, or send SIGQUIT yourself and pick up the javacore file.",
        )


_SWITCH = re.compile(r"-XX:([+-])DisableAttachMechanism")
_OPTIONS_BEFORE = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS")
_OPTIONS_AFTER = ("_JAVA_OPTIONS",)


def _refuse_disabled(target: Target, host: Host) -> None:
    """The last of the switches counts; what stands behind -jar or -m are the program's own arguments."""
    environment: dict[str, str] = {}
    try:
        entries = host.read_proc("environ", MIB).split(b"\0")
    except CollectError:
        entries = []  # the command line still tells, and a needless signal costs a thread dump on its stdout
    for entry in entries:
        name, _, value = entry.decode("utf-8", "replace").partition("=")
        if name in _OPTIONS_BEFORE or name in _OPTIONS_AFTER:
            environment[name] = value
    words = [word for name in _OPTIONS_BEFORE for word in environment.get(name, "").split()]
    for word in target.argv:
        if word in ("-jar", "-m", "--module"):
            break
        words.append(word)
    words += [word for name in _OPTIONS_AFTER for word in environment.get(name, "").split()]
    switches = [found[1] for word in words if (found := _SWITCH.fullmatch(word))]
    if switches and switches[-1] == "+":
        raise AccessDenied(
            "the JVM was started with -XX:+DisableAttachMechanism",
            hint="kill -QUIT makes it print its threads to its own stdout; native stacks and a core work as ever.",
        )
