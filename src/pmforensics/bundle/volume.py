"""The place where evidence is kept: will it survive the restart, and is there room?"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pmforensics.errors import VolumeFull, VolumeNotPersistent, VolumeUnusable
from pmforensics.model.capture import MIB, Json

# Gone with the machine's memory or with the container; nfs, ceph and the like are as persistent as their server.
FLEETING_TYPES = {
    "tmpfs": "tmpfs is memory: it is gone after a reboot, and in a container after the restart",
    "ramfs": "ramfs is memory: it is gone after a reboot",
    "devtmpfs": "devtmpfs is memory: it is gone after a reboot",
    "overlay": "overlay is a container's own layer: it is gone when the container is replaced",
    "aufs": "aufs is a container's own layer: it is gone when the container is replaced",
    "fuse-overlayfs": "fuse-overlayfs is a container's own layer: it is gone when the container is replaced",
}
EMPTY_DIR = "kubernetes.io~empty-dir"  # in the mount's root, as the kubelet lays emptyDir volumes out
FLOOR_SHARE = 50  # one fiftieth of the volume stays free ...
FLOOR_MIN_BYTES, FLOOR_MAX_BYTES = 32 * MIB, 1024 * MIB  # ... within these bounds
MAX_MOUNTINFO_BYTES = 16 * MIB


@dataclass(frozen=True, slots=True)
class Volume:
    """
    A folder and the file system under it.

    fleeting      why it does not outlive the restart, "" when it does
    floor_bytes   what a capture keeps free
    """

    folder: Path
    fs_type: str
    mount_point: str
    read_only: bool
    fleeting: str
    free_bytes: int
    total_bytes: int
    floor_bytes: int

    def json(self) -> dict[str, Json]:
        """As the manifest spells it."""
        return {
            "fs_type": self.fs_type,
            "mount_point": self.mount_point,
            "persistent": not self.fleeting,
            "fleeting_because": self.fleeting or None,
            "free_bytes": self.free_bytes,
            "total_bytes": self.total_bytes,
            "floor_bytes": self.floor_bytes,
        }


def read_volume(folder: Path) -> Volume:
    """
    What is under `folder`, or under its nearest parent that exists.

    Errors: VolumeUnusable when nothing can be learned.
    """
    place = folder.absolute()
    try:
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise VolumeUnusable(f"{place} is not a folder", hint="Give a folder with --evidence.")
        place = place.resolve()
        stats = os.statvfs(place)
        fs_type, mount_point, root = _mount_of(place)
    except OSError as error:
        raise VolumeUnusable(
            f"{place} cannot be examined ({error.strerror})", hint="Give a folder that you may use with --evidence."
        ) from None
    total_bytes = stats.f_blocks * stats.f_frsize
    fleeting = FLEETING_TYPES.get(fs_type, "")
    if not fleeting and EMPTY_DIR in root:
        fleeting = "an emptyDir volume is gone with its pod"
    return Volume(
        folder=folder.absolute(),
        fs_type=fs_type,
        mount_point=mount_point,
        read_only=bool(stats.f_flag & os.ST_RDONLY),
        fleeting=fleeting,
        free_bytes=stats.f_bavail * stats.f_frsize,
        total_bytes=total_bytes,
        floor_bytes=min(max(total_bytes // FLOOR_SHARE, FLOOR_MIN_BYTES), FLOOR_MAX_BYTES),
    )


def check_volume(volume: Volume, *, force: bool) -> None:
    """
    Refuse a place that cannot keep evidence, before any work starts.

    `force` overrules "not persistent" (the manifest records it); nothing overrules read-only or full.
    Errors: VolumeUnusable, VolumeFull, VolumeNotPersistent.
    """
    if volume.read_only:
        raise VolumeUnusable(
            f"{volume.folder} is on a read-only file system ({volume.mount_point})",
            hint="Give a writable folder with --evidence.",
        )
    if volume.free_bytes < volume.floor_bytes:
        raise VolumeFull(
            f"{volume.folder} has {volume.free_bytes // MIB} MiB free; {volume.floor_bytes // MIB} MiB must stay free",
            hint="Give another volume with --evidence, or make room.",
        )
    if volume.fleeting and not force:
        raise VolumeNotPersistent(
            f"{volume.folder} would not survive: {volume.fleeting}",
            hint="Give a volume that survives the restart with --evidence, or use --force to capture there anyway.",
        )


def _mount_of(place: Path) -> tuple[str, str, str]:
    """File system type, mount point and root of the mount that holds `place`; by device number, longest match."""
    wanted = os.stat(place).st_dev
    best = ("unknown", "", "")
    with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="surrogateescape") as file:
        for line in file.read(MAX_MOUNTINFO_BYTES).splitlines():
            left, _, right = line.partition(" - ")
            fields = left.split(" ")
            if len(fields) < 6 or not right:
                continue
            mount_point = _unescape(fields[4])
            major, _, minor = fields[2].partition(":")
            inside = place == Path(mount_point) or Path(mount_point) in place.parents
            same_device = os.makedev(int(major), int(minor)) == wanted
            # btrfs and overlayfs show another device in stat than in mountinfo: fall back to the path alone.
            if inside and (same_device or len(mount_point) >= len(best[1])):
                best = (right.split(" ")[0], mount_point, _unescape(fields[3]))
    return best


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)
