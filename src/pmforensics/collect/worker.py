"""
A collector in a process of its own.

The capture must be able to end any collector at any instant: a read of /proc can hang in the kernel, a server can
send for ever, a C call can crash. So each one is forked, has its own process group (its tools die with it), and
speaks over a pipe. The capture never waits for it longer than its deadline.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pmforensics.collect.base import CHUNK_BYTES, Collector, Host
from pmforensics.collect.gaps import gap_of, outcome_of, reason_of
from pmforensics.collect.host import LocalHost
from pmforensics.collect.isolate import isolate
from pmforensics.collect.pin import Pin
from pmforensics.collect.wire import (
    HEADER,
    MAX_CONTROL_BYTES,
    Sender,
    gap_message,
    open_message,
    settle_message,
)
from pmforensics.errors import CollectError, DeadlinePassed, PmfError, TargetGone
from pmforensics.model.capture import Artifact, Gap, Outcome, Settlement
from pmforensics.model.process import Target

TERM_GRACE_S = 0.5  # a collector that is told to end has this long to send what it holds
REAP_WITHIN_S = 0.5  # after SIGKILL; longer only when it hangs inside the kernel
PIPE_BYTES = 1 << 20

# -- inside the collector's process ----------------------------------------------------------------------------------


def _collect(collector: Collector, target: Target, host: Host, send: Sender) -> None:
    try:
        for item in collector.collect(target, host):
            if isinstance(item, Gap):
                send.control(**gap_message(item))
            else:
                _send_artifact(item, collector, send)
    except (CollectError, TargetGone) as error:
        send.control(**gap_message(gap_of(error, collector.name, collector.question)))
        send.control(kind="early")


def _send_artifact(item: Artifact, collector: Collector, send: Sender) -> None:
    """
    Stream one artifact. An error before its first byte makes it a gap; after that, a partial artifact.

    A passed deadline and a target that is gone also end the collector: they are raised again.
    """
    if isinstance(item.body, Path):
        send.control(**open_message(item))
        send.control(**settle_message(item.settled()))
        return
    chunks: Iterator[bytes] = iter((item.body,)) if isinstance(item.body, bytes) else iter(item.body)
    opened = False
    sent_bytes = 0
    broken: PmfError | None = None
    try:
        for chunk in chunks:
            if not opened:
                send.control(**open_message(item))
                opened = True
            send.data(chunk)
            sent_bytes += len(chunk)
    except PmfError as error:
        broken = error
    if broken is not None and not sent_bytes:
        if opened:
            send.control(**settle_message(Settlement(outcome_of(broken), reason_of(broken))))
        send.control(**gap_message(gap_of(broken, f"{collector.name}/{item.path}", collector.question)))
    elif broken is not None:
        send.control(**settle_message(Settlement(Outcome.PARTIAL, reason_of(broken), dict(item.facts), item.pause)))
    else:
        if not opened:
            send.control(**open_message(item))
        settled = item.settled()
        if not sent_bytes and settled.outcome is Outcome.COLLECTED:
            settled = Settlement(Outcome.EMPTY, settled.reason, settled.facts, settled.pause)
        send.control(**settle_message(settled))
    if isinstance(broken, (DeadlinePassed, TargetGone)):
        raise broken


def _live(job: Callable[[Host, Sender], None], make_host: Callable[[Sender], Host], fd: int) -> NoReturn:
    """The whole life of the forked process."""
    status = 1
    send = Sender(fd)

    def on_term(_signum: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        send.interrupt(DeadlinePassed("its time was up", hint="Give more time: --budget"))

    signal.signal(signal.SIGTERM, on_term)
    try:
        try:
            job(make_host(send), send)
        except PmfError as error:
            send.control(kind="error", code=error.code, says=error.message, hint=error.hint)
        except BaseException as error:  # a bug in one collector must not pass for silence
            import traceback

            where = traceback.format_exc(limit=-4)
            send.control(kind="bug", says=f"{type(error).__name__}: {error}"[:500], trace=where[:4000])
        send.control(kind="done")
        status = 0
    finally:
        os._exit(status)


# -- the capture's side ----------------------------------------------------------------------------------------------


class Stop:
    """A request to end early that also wakes a capture that is waiting for a pipe."""

    def __init__(self) -> None:
        self.why: str | None = None
        self.fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def ask(self, why: str) -> None:
        """Ask; callable from a signal handler. The first reason stays."""
        if self.why is None:
            self.why = why
            os.write(self._write_fd, b"!")


@dataclass(slots=True)
class Worker:
    """
    The capture's hold on one collector's process.

    cut      why it was told to end before it was done: "deadline" or the reason of the Stop; None if it was not
    done     it said that it was finished
    early    it said that an error ended it before its work was finished
    reaped   its process is gone for certain
    """

    pid: int
    fd: int
    deadline: float
    stop: Stop
    cut: str | None = None
    done: bool = False
    early: bool = False
    reaped: bool = False
    exit_signal: int = 0
    _ended: bool = False
    _killed: bool = False
    _poll: select.poll = field(default_factory=select.poll)

    def __post_init__(self) -> None:
        self._poll.register(self.fd, select.POLLIN | select.POLLHUP)
        self._poll.register(self.stop.fd, select.POLLIN)

    def receive(self, most_bytes: int) -> bytes:
        """Up to that many bytes; b"" at the end of the pipe, which comes at the deadline at the latest."""
        while not self._ended:
            left_s = self.deadline - time.monotonic()
            if self.stop.why is not None and self.cut is None:
                left_s = 0.0
            if left_s <= 0:
                if not self._cut_off():
                    return b""
                continue
            for fd, _ in self._poll.poll(left_s * 1000):
                if fd == self.fd:
                    return os.read(self.fd, most_bytes)
        return b""

    def receive_exactly(self, wanted_bytes: int) -> bytes:
        """That many bytes, or fewer when the pipe ends."""
        parts = []
        while wanted_bytes and (part := self.receive(wanted_bytes)):
            parts.append(part)
            wanted_bytes -= len(part)
        return b"".join(parts)

    def frame(self) -> tuple[bytes, int]:
        """Kind and length of the next frame; (b"", 0) at the end."""
        head = self.receive_exactly(HEADER.size)
        if len(head) < HEADER.size:
            return b"", 0
        kind, length = HEADER.unpack(head)
        return kind, length

    def message(self, length: int) -> dict[str, Any] | None:
        """The control message of that length; None when the pipe ended inside it, or it is none."""
        import json

        if length > MAX_CONTROL_BYTES:
            return None
        payload = self.receive_exactly(length)
        if len(payload) < length:
            return None
        try:
            message = json.loads(payload)
        except ValueError:
            return None  # something else in that process wrote into the pipe
        return message if isinstance(message, dict) and "kind" in message else None

    def data(self, length: int) -> Iterator[bytes]:
        """The pieces of a data frame."""
        while length and (piece := self.receive(min(length, CHUNK_BYTES))):
            length -= len(piece)
            yield piece

    def end(self) -> None:
        """Make sure that the process and its tools are gone; idempotent."""
        if self._ended:
            return
        self._ended = True
        if not self.done:
            self._kill(signal.SIGKILL)
        give_up = time.monotonic() + (TERM_GRACE_S if self.done else REAP_WITHIN_S)
        while not self._reap():
            if time.monotonic() >= give_up:
                if self._killed:
                    break  # hangs in the kernel; it holds no descriptor of ours and its pipe is closed
                self._kill(signal.SIGKILL)
                give_up = time.monotonic() + REAP_WITHIN_S
            time.sleep(0.001)
        self._kill(signal.SIGKILL)  # tools that outlived their collector
        os.close(self.fd)

    def _cut_off(self) -> bool:
        """TERM first, then KILL; False once nothing more can come."""
        if self.cut is None:
            self.cut = self.stop.why or "deadline"
            self._poll.unregister(self.stop.fd)
            os.kill(self.pid, signal.SIGTERM)  # itself only: it may still send what its tools have given it
            self.deadline = time.monotonic() + TERM_GRACE_S
            return True
        if not self._killed:
            self._kill(signal.SIGKILL)
        return False

    def _kill(self, signum: signal.Signals) -> None:
        if signum == signal.SIGKILL:
            self._killed = True
        try:
            os.killpg(self.pid, signum)
        except (ProcessLookupError, PermissionError):
            return

    def _reap(self) -> bool:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.reaped = True
            self.exit_signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return self.reaped


def start(
    job: Callable[[Host, Sender], None],
    pin: Pin,
    target: Target,
    *,
    limit_s: float,
    spool: Path,
    floor_bytes: int,
    stop: Stop,
) -> Worker:
    """
    Fork a process that does `job`.

    The process sees a deadline a little before the one that the capture enforces, so that it can end in order.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    with suppress(OSError):  # an ordinary user over the soft limit keeps the default size; slower, not wrong
        fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    deadline = time.monotonic() + limit_s
    own_deadline = deadline - min(0.2, limit_s / 10)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            isolate({write_fd, pin.pidfd, pin.proc_fd})
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the capture died: so must this process, at once

            def make_host(send: Sender) -> Host:
                def log(verb: str, what: str, seconds: float, result: str) -> None:
                    send.control(kind="touch", verb=verb, what=what, seconds=round(seconds, 6), result=result)

                return LocalHost(pin, target, deadline=own_deadline, spool=spool, floor_bytes=floor_bytes, log=log)

            _live(job, make_host, write_fd)
        finally:
            os._exit(1)
    os.close(write_fd)
    with suppress(OSError):  # both sides do it; it may have done so itself, or have ended already
        os.setpgid(pid, pid)
    return Worker(pid, read_fd, deadline, stop)


def start_collector(
    collector: Collector,
    pin: Pin,
    target: Target,
    *,
    limit_s: float,
    spool: Path,
    floor_bytes: int,
    stop: Stop,
) -> Worker:
    """Fork a process that runs one collector."""

    def job(host: Host, send: Sender) -> None:
        _collect(collector, target, host, send)

    return start(job, pin, target, limit_s=limit_s, spool=spool, floor_bytes=floor_bytes, stop=stop)
