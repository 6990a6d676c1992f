"""Running a command as a user without any rights. Needs root."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

UID = 12345  # of nobody in particular
REPO = Path(__file__).resolve().parent.parent


def prefix(uid: int = UID) -> tuple[str, ...]:
    """A command that runs the rest as this user, without capabilities and other groups."""
    return ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all")


@functools.cache
def python() -> tuple[tuple[str, ...], dict[str, str]]:
    """
    An interpreter with pmf that the user may run, as command and environment.

    The environment's own, unless it lies in a folder closed to others (an interpreter under root's home): then the
    system's with the packages of the environment.
    """
    packages = [path for path in sys.path if path.endswith("site-packages")]
    env = {"PYTHONPATH": os.pathsep.join([str(REPO / "src"), *packages]), "HOME": "/nonexistent"}
    for candidate in (sys.executable, "/usr/bin/python3"):
        tried = subprocess.run(
            [*prefix(), candidate, "-c", "import ctypes, pmforensics.cli.capture"],
            env={**os.environ, **env}, cwd="/", capture_output=True, check=False,
        )  # fmt: skip
        if tried.returncode == 0:
            return (candidate,), env
    raise AssertionError(f"uid {UID} can run no Python with pmf here: {tried.stderr.decode()}")


def pmf(*args: object, uid: int = UID) -> subprocess.CompletedProcess[str]:
    """`pmf` as this user."""
    command, env = python()
    return subprocess.run(
        [*prefix(uid), *command, "-m", "pmforensics", *map(str, args)],
        env={**os.environ, **env}, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def open_to(folder: Path, uid: int = UID) -> Path:
    """A new folder that belongs to the user, with a way to it through the test's own folders."""
    folder.mkdir()
    os.chown(folder, uid, uid)
    for parent in folder.parents:
        status = parent.stat()
        if status.st_uid == os.geteuid() and not status.st_mode & 0o001:
            parent.chmod(status.st_mode | 0o001)
    return folder
