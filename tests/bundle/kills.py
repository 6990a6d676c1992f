"""Kill a piece of pmf before any one of its system calls, as kill -9 at that instant would."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

# Everything through which the bundle room changes the disk; pathlib and shutil go through these too.
CHANGES = (
    "open", "write", "fsync", "fdatasync", "rename", "unlink", "mkdir", "rmdir", "truncate", "ftruncate",
    "posix_fallocate", "fchmod", "fchown",
)  # fmt: skip


def killed_at(number: int, job: Callable[[], object], *, torn: bool = False) -> bool:
    """
    Runs `job` in a forked process that is killed before its `number`-th change (1-based) of the disk.

    `torn`: a write that is hit is half done first. Returns whether it was killed; False when it came to its end.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            left = number

            def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
                def call(*args: Any, **more: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if left == 0:
                        if torn and name == "write":
                            real(args[0], bytes(args[1])[: len(args[1]) // 2])
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*args, **more)

                return call

            for name in CHANGES:
                setattr(os, name, counted(name, getattr(os, name)))
            job()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, ended = os.waitpid(pid, 0)
    if os.WIFSIGNALED(ended):
        assert os.WTERMSIG(ended) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(ended) == 0, "the job failed before it was killed: see its traceback"
    return False
