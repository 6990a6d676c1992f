"""
The guard: a tiny process that outlives pmf, ends what pmf left running and sets the target free.

If pmf is killed (`kill -9`, the kernel's memory killer), nobody is left to end a collector that hangs, or the tools
that it started; and a tool that was killed while it held the target with PTRACE_ATTACH can leave it stopped for
good. So before the first collector pmf forks a guard: it sits on a pipe; when the pipe ends without a good-bye, it
kills the collector's process group and, where the collector may have stopped the target, continues a target that
was left stopped and was not stopped before.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import NoReturn

from pmforensics.collect.isolate import isolate
from pmforensics.collect.pin import STOPPED, Pin, split_stat

FREE_WITHIN_S = 1.0  # a detach after SIGKILL of the tracer takes milliseconds; a loaded machine gets a second


def states_of(pin: Pin) -> dict[int, str]:
    """State letter of every thread of the target; empty when it is gone."""
    states = {}
    try:
        listing = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=pin.proc_fd)
    except OSError:
        return {}
    try:
        tids = [int(name) for name in os.listdir(listing)]
    except OSError:
        return {}
    finally:
        os.close(listing)
    for tid in tids:
        try:
            _, fields = split_stat(pin.read(f"task/{tid}/stat"))
            states[tid] = fields[0].decode()
        except (OSError, IndexError):
            continue  # the thread ended
    return states


def set_free(pin: Pin, was_stopped: bool) -> bool:
    """
    Prove that the target runs, and continue it if a tool left it stopped.

    Waits up to FREE_WITHIN_S for tracers to let go. A target that was stopped before the capture stays so.
    Returns whether no thread is held any more (also True for a target that has exited).
    """
    give_up = time.monotonic() + FREE_WITHIN_S
    continued = False
    while True:
        states = states_of(pin)
        held = {state for state in states.values() if state in STOPPED}
        if not held or (was_stopped and held == {"T"}):
            return True
        if time.monotonic() >= give_up:
            return False
        if "T" in held and "t" not in held and not was_stopped and not continued:
            continued = True
            try:
                signal.pidfd_send_signal(pin.pidfd, signal.SIGCONT)
            except OSError:
                return not pin.is_alive()
        time.sleep(0.005)


class Guard:
    """The parent's end. `watch` when a collector begins, `relax` when it is over and the target is free."""

    def __init__(self, pin: Pin) -> None:
        self._pin = pin
        self._was_stopped = pin.state in STOPPED
        read_fd, self._fd = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._fd)
            _stand_guard(read_fd, pin, self._was_stopped)
        os.close(read_fd)

    def watch(self, process_group: int, *, stops: bool) -> None:
        """A collector runs in this process group, and may stop the target."""
        os.write(self._fd, b"%d %d\n" % (process_group, stops))

    def relax(self) -> None:
        """No collector runs, and nobody holds the target."""
        os.write(self._fd, b"0 0\n")

    def set_free(self) -> bool:
        """See that the target runs as it did before; whether it does."""
        return set_free(self._pin, self._was_stopped)

    def close(self) -> None:
        """Dismiss the guard and wait for it."""
        self.relax()
        os.close(self._fd)
        os.waitpid(self._pid, 0)


def _stand_guard(read_fd: int, pin: Pin, was_stopped: bool) -> NoReturn:
    isolate({read_fd, pin.pidfd, pin.proc_fd})
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_IGN)
    watched, stops = 0, False
    while lines := os.read(read_fd, 1 << 16):  # as much as a pipe holds: whole lines
        group, may_stop = lines.splitlines()[-1].split()
        watched, stops = int(group), may_stop == b"1"
    if watched:
        with suppress(OSError):  # already gone; the target must still be looked at
            os.killpg(watched, signal.SIGKILL)
        if stops:
            set_free(pin, was_stopped)
    os._exit(0)
