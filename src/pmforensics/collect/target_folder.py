"""
A private folder in the target's own /tmp, for dumps that only the target itself can write.

A JVM writes heap dumps and JSON thread dumps to a path that it is given, as its own user, in its own mount
namespace. Such a file must not stay behind, whatever becomes of pmf: a janitor, a process that outlives even a
SIGKILL of the collector, removes the folder as soon as its pipe to the collector ends.
"""

from __future__ import annotations

import os
import posixpath
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

from pmforensics.collect.attach_jvm import TMP, as_target, open_tmp
from pmforensics.collect.base import Host
from pmforensics.collect.isolate import isolate
from pmforensics.errors import AccessDenied, AnswerBroken, CollectError, NotThere, WouldHarm
from pmforensics.formats.proc import parse_cgroup, parse_mountinfo
from pmforensics.model.capture import KIB, MIB
from pmforensics.model.process import Target

CLEAN_WITHIN_S = 10.0  # a VM that is still writing may create one more file while the folder is emptied
LEAVE_AFTER_S = 0.1
IN_MEMORY = frozenset({"tmpfs", "ramfs"})


@dataclass(frozen=True, slots=True)
class TargetFolder:
    """
    A folder that only the target's user can enter, gone when the context ends.

    path   as the target sees it
    """

    path: str
    fd: int
    uid: int

    def take(self, name: str) -> int:
        """A descriptor of a finished file, for reading; its name is removed. NotThere, AnswerBroken."""
        return take_file(self.fd, name, self.uid)


def take_file(folder_fd: int, name: str, uid: int) -> int:
    """
    Open a file that the target has written, and remove its name. The caller closes the descriptor.

    NotThere, AnswerBroken (not a regular file of that user): the folder is the target's, and so may be a link in it.
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
    except FileNotFoundError:
        raise NotThere(f"the target wrote no {name}") from None
    except OSError as error:
        raise AnswerBroken(f"{name}: {error.strerror}") from None
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != uid:
        os.close(fd)
        raise AnswerBroken(f"{name} is not a regular file of the target's user")
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder_fd)
    return fd


@contextmanager
def target_folder(target: Target, host: Host) -> Iterator[TargetFolder]:
    """Make the folder; empty and remove it at the end, also after SIGKILL. AccessDenied, NotThere."""
    tmp_fd = open_tmp(target, host)
    try:
        name = f".pmf-{os.urandom(8).hex()}"
        with _janitor(tmp_fd, name):
            try:
                with as_target(target):
                    os.mkdir(name, 0o700, dir_fd=tmp_fd)
                fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=tmp_fd)
            except OSError as error:
                raise AccessDenied(
                    f"nothing can be created in the target's {TMP} as uid {target.uid} ({error.strerror})",
                    hint=f"Mount a writable {TMP} into the container.",
                ) from None
            try:
                host.note("create", f"{TMP}/{name} (as the target sees it), removed again")
                yield TargetFolder(f"{TMP}/{name}", fd, target.uid)
            finally:
                os.close(fd)
    finally:
        os.close(tmp_fd)


def room_in_target(target: Target, host: Host, wanted_bytes: int) -> None:
    """
    WouldHarm when a file of that size in the target's /tmp would cross the floor, or is memory that is not there.

    A tmpfs in a container counts against the container's memory limit: filling it gets the target killed.
    """
    tmp_fd = open_tmp(target, host)
    try:
        host.room_for(wanted_bytes, f"/proc/self/fd/{tmp_fd}")
        device = os.fstat(tmp_fd).st_dev
    except WouldHarm as error:
        raise WouldHarm(f"in the target's {TMP}: {error.message}", hint=f"Make room in the target's {TMP}.") from None
    finally:
        os.close(tmp_fd)
    mounts = parse_mountinfo(host.read_proc("mountinfo").decode("utf-8", "surrogateescape"))
    kinds = {mount.fs_type for mount in mounts if mount.dev == (os.major(device), os.minor(device))}
    if kinds & IN_MEMORY:
        left_bytes = memory_left_bytes(host)
        if left_bytes is not None and wanted_bytes > left_bytes:
            raise WouldHarm(
                f"the target's {TMP} is memory: it needs {wanted_bytes / MIB:,.0f} MiB and the target may use"
                f" {left_bytes / MIB:,.0f} MiB more before it is killed",
                hint=f"Mount a disk at the target's {TMP}.",
            )


def memory_left_bytes(host: Host) -> int | None:
    """How much more memory the target can be charged with: its cgroup's limits (v1 or v2) and the host's own."""
    left = [value for value in (_host_left(host), *_cgroups_left(host)) if value is not None]
    return max(0, min(left)) if left else None


def _host_left(host: Host) -> int | None:
    try:
        for line in host.read("/proc/meminfo").splitlines():
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) * KIB
    except (CollectError, ValueError, IndexError):
        return None
    return None


def _cgroups_left(host: Host) -> Iterator[int | None]:
    try:
        placed = parse_cgroup(host.read_proc("cgroup").decode("utf-8", "replace"))
    except CollectError:
        return
    for controllers, path in placed.paths.items():
        inside = posixpath.normpath("/" + path).strip("/")
        if controllers == "":
            parts = inside.split("/") if inside else []
            for depth in range(len(parts), 0, -1):
                folder = posixpath.join("/sys/fs/cgroup", *parts[:depth])
                yield _left(host, folder, "memory.max", "memory.current", b"file ")
        elif "memory" in controllers.split(","):
            folder = posixpath.join("/sys/fs/cgroup/memory", inside)
            yield _left(host, folder, "memory.limit_in_bytes", "memory.usage_in_bytes", b"total_cache ")


def _left(host: Host, folder: str, limit_name: str, used_name: str, cache_key: bytes) -> int | None:
    """Limit minus use, page cache counted as free: the kernel drops it before it kills."""
    try:
        limit = int(host.read(f"{folder}/{limit_name}"))
        used = int(host.read(f"{folder}/{used_name}"))
        cached = sum(
            int(line.split()[1])
            for line in host.read(f"{folder}/memory.stat").splitlines()
            if line.startswith(cache_key)
        )
    except (CollectError, ValueError, IndexError):
        return None  # "max", or not to be seen from here
    return limit - used + cached


# -- the janitor -----------------------------------------------------------------------------------------------------


@contextmanager
def _janitor(tmp_fd: int, name: str) -> Iterator[None]:
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            _wait_and_clean(read_fd, tmp_fd, name)
        finally:
            os._exit(1)
    os.close(read_fd)
    try:
        yield
    finally:
        os.close(write_fd)
        give_up = time.monotonic() + LEAVE_AFTER_S
        while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < give_up:
            time.sleep(0.0005)


def _wait_and_clean(read_fd: int, tmp_fd: int, name: str) -> NoReturn:
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(signum, signal.SIG_IGN)
    isolate({read_fd, tmp_fd})  # a group of its own: it must outlive the kill of the collector's group
    os.read(read_fd, 1)
    give_up = time.monotonic() + CLEAN_WITHIN_S
    while not _clean(tmp_fd, name) and time.monotonic() < give_up:
        time.sleep(0.02)
    os._exit(0)


def _clean(tmp_fd: int, name: str) -> bool:
    """
    Whether the folder is gone.

    A file that the VM is still writing loses its name, and its space when the VM closes it. Once the folder is
    gone, the VM can create nothing more in it.
    """
    try:
        folder_fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=tmp_fd)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        for entry in os.listdir(folder_fd):
            with suppress(OSError):
                os.unlink(entry, dir_fd=folder_fd)
    finally:
        os.close(folder_fd)
    with suppress(OSError):
        os.rmdir(name, dir_fd=tmp_fd)
        return True
    return False
