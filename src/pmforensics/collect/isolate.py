"""Cut a forked process loose from everything it inherited and must not hold."""

from __future__ import annotations

import os
import signal


def isolate(keep_fds: set[int]) -> None:
    """
    Make this freshly forked process a group of its own that holds only `keep_fds`.

    Inherited descriptors would keep the bundle locked and the terminal's pipes open after pmf's death; stdin,
    stdout and stderr become /dev/null.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the capture, which decides what to do
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep_fds:
            try:
                os.close(int(name))
            except OSError:
                continue  # the descriptor of the listing itself
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if fd not in keep_fds:
            os.dup2(null, fd)
    if null > 2:
        os.close(null)
