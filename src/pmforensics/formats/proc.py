"""
The texts of /proc/PID that tell what a process is: status, stat, maps, mountinfo, cgroup, net/tcp.

The text is given as the kernel wrote it; decode bytes with errors="surrogateescape" so that odd file names
survive. Sources: proc(5), fs/proc/array.c, fs/proc/task_mmu.c, fs/proc_namespace.c, net/ipv4/tcp_ipv4.c.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from pmforensics.errors import FormatError

_MAX_MAPS_LINES = 200_000  # vm.max_map_count is 65,530 by default, and some raise it
_MAX_MOUNTS = 100_000  # fs.mount-max of the kernel
_MAX_LISTENERS = 65_536
_MAX_STATUS_LINES = 1000  # the kernel writes about 60


# ------------------------------------------------------------------------------------------ status and stat


def parse_status(text: str) -> dict[str, str]:
    """/proc/PID/status as field -> value text, e.g. {"Name": "nginx", "State": "S (sleeping)"}."""
    fields: dict[str, str] = {}
    for line in text.split("\n")[:_MAX_STATUS_LINES]:
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name, value.strip())
    return fields


def signal_caught(status_text: str, signum: int) -> bool:
    """Whether the process has a handler for the signal (SigCgt)."""
    return _in_signal_mask(status_text, "SigCgt", signum)


def signal_ignored(status_text: str, signum: int) -> bool:
    """Whether the process ignores the signal (SigIgn)."""
    return _in_signal_mask(status_text, "SigIgn", signum)


def signal_blocked(status_text: str, signum: int) -> bool:
    """Whether the thread blocks the signal (SigBlk; in /proc/PID/status that of the main thread)."""
    return _in_signal_mask(status_text, "SigBlk", signum)


def _in_signal_mask(status_text: str, field: str, signum: int) -> bool:
    """Raises FormatError when the field is not there: a guess about a signal can kill the target."""
    if not 1 <= signum <= 64:
        raise ValueError(f"signal {signum} is not within 1 to 64")
    mask = parse_status(status_text).get(field, "")
    if not re.fullmatch(r"[0-9a-fA-F]{1,32}", mask):
        raise FormatError(f"The status of the process has no readable {field} line.")
    return bool(int(mask, 16) >> (signum - 1) & 1)


def parse_stat_state(stat: bytes) -> str:
    """The state letter in /proc/PID/stat (R, S, D, Z, T, t, X, I ...). Raises FormatError."""
    state = _stat_fields(stat)[0].decode("ascii", "replace")
    if len(state) != 1:
        raise FormatError("The stat line of the process has no state letter.")
    return state


def parse_stat_start_ticks(stat: bytes) -> int:
    """Field 22 of /proc/PID/stat: when the process started, in clock ticks after boot. Raises FormatError."""
    fields = _stat_fields(stat)
    if len(fields) < 20 or not fields[19].isdigit():
        raise FormatError("The stat line of the process has no start time.")
    return int(fields[19])


def _stat_fields(stat: bytes) -> list[bytes]:
    """The fields from the third on. The second, the name, is free text: only the last ")" ends it."""
    name_end = stat.rfind(b")")
    fields = stat[name_end + 1 :].split()
    if name_end < 0 or not fields:
        raise FormatError("The stat line of the process is cut.")
    return fields


# ----------------------------------------------------------------------------------------------------- maps


@dataclass(frozen=True, slots=True)
class Mapping:
    """
    One line of /proc/PID/maps; addresses half-open, `offset` in bytes, `path` "" when anonymous.

    `deleted` means that the kernel wrote " (deleted)" behind the path. A file whose own name ends so looks
    the same; only its inode can tell.
    """

    start: int
    end: int
    perms: str
    offset: int
    dev: tuple[int, int]
    inode: int
    path: str
    deleted: bool


@dataclass(frozen=True, slots=True)
class Maps:
    """What was read of /proc/PID/maps, and how many lines were not (beyond the bound, or not understood)."""

    mappings: list[Mapping]
    lost_lines: int


_MAPS_LINE = re.compile(
    r"([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([-rwxsp]{4}) ([0-9a-f]{1,16}) ([0-9a-f]{1,8}):([0-9a-f]{1,8}) "
    r"(\d{1,20})(?: +(\S.*)?)?"
)
_DELETED = " (deleted)"


def parse_maps(text: str) -> Maps:
    """/proc/PID/maps. The kernel writes a newline in a path as \\012 and leaves everything else as it is."""
    mappings: list[Mapping] = []
    lost = 0
    for line in text.split("\n"):
        if not line:
            continue
        found = _MAPS_LINE.fullmatch(line) if len(mappings) < _MAX_MAPS_LINES else None
        if found is None:
            lost += 1
            continue
        start, end, perms, offset, major, minor, inode, path = found.groups(default="")
        path = path.replace("\\012", "\n")
        deleted = path.endswith(_DELETED)
        mappings.append(
            Mapping(
                start=int(start, 16),
                end=int(end, 16),
                perms=perms,
                offset=int(offset, 16),
                dev=(int(major, 16), int(minor, 16)),
                inode=int(inode),
                path=path.removesuffix(_DELETED),
                deleted=deleted,
            )
        )
    return Maps(mappings, lost)


# ------------------------------------------------------------------------------------------------ mountinfo


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/PID/mountinfo, with the octal escapes in the texts undone."""

    mount_id: int
    parent_id: int
    dev: tuple[int, int]
    root: str
    mount_point: str
    options: tuple[str, ...]
    fs_type: str
    source: str
    super_options: tuple[str, ...]


_MOUNT_LINE = re.compile(
    r"(\d{1,10}) (\d{1,10}) (\d{1,10}):(\d{1,10}) (\S+) (\S+) (\S+)(?: [^ -]\S*)* - (\S+) (\S*) (\S*)"
)
_OCTAL = re.compile(r"\\([0-3][0-7]{2})")


def parse_mountinfo(text: str) -> list[Mount]:
    """/proc/PID/mountinfo, in its order: of two mounts on one place the later one is seen."""
    mounts: list[Mount] = []
    for line in text.split("\n")[:_MAX_MOUNTS]:
        found = _MOUNT_LINE.fullmatch(line)
        if found is None:
            continue
        mount_id, parent_id, major, minor, root, point, options, fs_type, source, super_options = found.groups()
        mounts.append(
            Mount(
                mount_id=int(mount_id),
                parent_id=int(parent_id),
                dev=(int(major), int(minor)),
                root=_unescape(root),
                mount_point=_unescape(point),
                options=tuple(options.split(",")),
                fs_type=_unescape(fs_type),
                source=_unescape(source),
                super_options=tuple(_unescape(super_options).split(",")),
            )
        )
    return mounts


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda escape: chr(int(escape[1], 8)), text)


# --------------------------------------------------------------------------------------------------- cgroup


@dataclass(frozen=True, slots=True)
class Cgroup:
    """
    Which groups the kernel counts the process to, and what their names tell.

    paths         controllers as in the file ("" in version 2, "name=systemd", "cpu,cpuacct") -> path
    container_id  of the innermost container, 64 hex digits (Fargate: 32 and a number)
    pod_uid       Kubernetes pod UID with dashes, or a static pod's 32 hex digits
    unit          systemd service, as systemd escaped it, of the system's or a user's manager; not the service
                  that runs containers when the process is in one
    """

    paths: dict[str, str]
    container_id: str | None
    pod_uid: str | None
    unit: str | None


# docker-ID.scope, cri-containerd-ID.scope, crio-ID.scope, libpod-ID.scope, x.slice:cri-containerd:ID, ID.
# crio-conmon-ID and libpod-conmon-ID are the monitor beside the container, not the container.
_CONTAINER = re.compile(
    r"(?!.*-conmon-)(?:.*[-:_])?([0-9a-f]{64}|[0-9a-f]{32}-[0-9]{5,20})(?:\.scope|\.slice|\.service)?"
)
_POD = re.compile(r"(?:.*-)?pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice.*)?")
_USER_MANAGER = re.compile(r"user@\d+\.service")
_MAX_CGROUP_LINES = 100
_MAX_PATH_PARTS = 100
_MAX_PART_CHARS = 255  # a folder name has no more


def parse_cgroup(text: str) -> Cgroup:
    """/proc/PID/cgroup of either version: docker, containerd, CRI-O, podman, ECS; systemd or plain naming."""
    paths: dict[str, str] = {}
    for line in text.split("\n")[:_MAX_CGROUP_LINES]:
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            paths.setdefault(controllers, path)
    container_id = pod_uid = unit = None
    # systemd's own hierarchies first: they go all the way down where a controller's may stop.
    for _, path in sorted(paths.items(), key=lambda item: item[0] not in ("", "name=systemd")):
        in_path = _read_cgroup_path(path)
        container_id = container_id or in_path[0]
        pod_uid = pod_uid or in_path[1]
        unit = unit or in_path[2]
    return Cgroup(paths, container_id, pod_uid, unit)


def _read_cgroup_path(path: str) -> tuple[str | None, str | None, str | None]:
    """Container ID, pod UID, unit; of nested ones the innermost."""
    container_id = pod_uid = unit = None
    for part in path.split("/")[:_MAX_PATH_PARTS]:
        part = part[:_MAX_PART_CHARS]
        if pod := _POD.fullmatch(part):
            pod_uid = pod[1].replace("_", "-")
        if container := _CONTAINER.fullmatch(part):
            container_id = container[1]
            # A service that podman runs as a container (--cgroups=split) is a service still. In all other
            # cases the service above a container is the one that runs containers.
            if not part.startswith("libpod-payload-"):
                unit = None
        elif part.endswith(".service") and not _USER_MANAGER.fullmatch(part):
            unit = part
    return container_id, pod_uid, unit


# -------------------------------------------------------------------------------------------------- net/tcp


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket; `inode` is the number in the socket:[...] links of /proc/PID/fd."""

    address: str
    port: int
    inode: int


_TCP_LISTEN = "0A"
_TCP_PLACE = re.compile(r"[0-9A-F]{8,32}:[0-9A-F]{4}")


def parse_net_tcp(text: str, ipv6: bool) -> list[Listener]:
    """
    The listening sockets of /proc/PID/net/tcp, or tcp6 with `ipv6`: those of the whole network namespace.

    Addresses are in the byte order of the machine that wrote the text, taken to be this one.
    """
    listeners: list[Listener] = []
    for line in text.split("\n")[1:]:
        fields = line.split(maxsplit=10)
        if len(fields) < 10 or fields[3] != _TCP_LISTEN or len(listeners) == _MAX_LISTENERS:
            continue
        address, _, port = fields[1].partition(":")
        if len(address) == (32 if ipv6 else 8) and _TCP_PLACE.fullmatch(fields[1]) and fields[9].isdecimal():
            listeners.append(Listener(_address(address), int(port, 16), int(fields[9])))
    return listeners


def _address(words: str) -> str:
    """The kernel prints each 32-bit word of the address, which is in network order, as a native number."""
    from socket import AF_INET, AF_INET6, inet_ntop

    packed = b"".join(int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8))
    return inet_ntop(AF_INET6 if len(packed) == 16 else AF_INET, packed)
