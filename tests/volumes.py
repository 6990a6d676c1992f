"""Small file systems of their own for tests, mounted below a test's folder and gone with it. They need root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20


def _mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


@contextmanager
def ext4(place: Path, size_mib: int) -> Iterator[Path]:
    """A fresh ext4 file system in a loop-mounted image; all of its space is for everybody."""
    image = place.with_name(place.name + ".img")
    with image.open("wb") as file:
        file.truncate(size_mib * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", image], check=True, capture_output=True)
    place.mkdir()
    mount_again(place)
    try:
        yield place
    finally:
        unmount(place)
        image.unlink()


def mount_again(place: Path) -> None:
    """Mount the image of an `ext4` that was unmounted."""
    _mount("-o", "loop,errors=remount-ro", place.with_name(place.name + ".img"), place)


def break_down(place: Path) -> None:
    """Let an `ext4` find itself damaged: it takes no more writes, also of files that are open."""
    name = os.path.basename(os.path.realpath(f"/sys/dev/block/{_device(place)}"))
    Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("a test of pmf")


def _device(place: Path) -> str:
    number = place.stat().st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def repair(place: Path) -> None:
    """What an administrator does after `break_down`."""
    unmount(place)
    subprocess.run(["e2fsck", "-f", "-y", place.with_name(place.name + ".img")], check=False, capture_output=True)
    mount_again(place)


@contextmanager
def tmpfs(place: Path, size_mib: int) -> Iterator[Path]:
    """Memory."""
    place.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size_mib}m,mode=755", "tmpfs", place)
    try:
        yield place
    finally:
        unmount(place)


@contextmanager
def overlay(place: Path) -> Iterator[Path]:
    """What a container's own layer is."""
    for name in ("lower", "upper", "work"):
        place.with_name(f"{place.name}-{name}").mkdir()
    place.mkdir()
    lower, upper, work = (place.with_name(f"{place.name}-{name}") for name in ("lower", "upper", "work"))
    _mount("-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", place)
    try:
        yield place
    finally:
        unmount(place)


@contextmanager
def bind(source: Path, place: Path) -> Iterator[Path]:
    """The same folder at another place; mountinfo then shows `source` as the root of the mount."""
    place.mkdir()
    _mount("--bind", source, place)
    try:
        yield place
    finally:
        unmount(place)


def unmount(place: Path) -> None:
    """Take it away even where it is in use; silent where nothing is mounted any more."""
    subprocess.run(["umount", "-l", place], capture_output=True, check=False)


def free_bytes(place: Path) -> int:
    """What an ordinary user may still use."""
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


def fill(place: Path, leave_bytes: int, name: str = "filler") -> Path:
    """A file that takes all the space but `leave_bytes`."""
    filler = place / name
    with filler.open("wb") as file:
        # The file's own block map takes room too: come close, then look again.
        while (more := free_bytes(place) - leave_bytes) > 0:
            try:
                os.posix_fallocate(file.fileno(), file.seek(0, 2), max(more * 63 // 64, min(more, 4096)))
            except OSError:
                break
            if more <= 4096:
                break
            file.seek(0, 2)
    return filler
