"""Which build each mapped image is, as the process itself has it mapped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import ClassVar

from pmforensics.collect.base import Host
from pmforensics.errors import CollectError, FormatError, NotThere, TargetGone
from pmforensics.formats.elf import read_elf_identity, read_go_build_info
from pmforensics.formats.proc import Mapping, parse_maps
from pmforensics.model.capture import MIB, Artifact, Gap, Json, Outcome, Reason
from pmforensics.model.process import Runtime, Target

MAX_IMAGES = 5_000
ELF_MAGIC = b"\x7fELF"
VDSO = "[vdso]"


@dataclass(frozen=True, slots=True)
class BuildIds:
    """
    The identity of every mapped ELF image.

    Source:   the mapped file itself through /proc/PID/map_files, so that deleted, replaced and containerised files
              are read as mapped; else the file at that path in the target's root when its inode is the mapped
              one; else the ELF header in the process's memory. `read_by` says which.
    Yields:   images.json: path, address, inode, GNU build ID, Go build ID, .note.package, debug link per image;
              go.json: Go version, modules, VCS revision (link flags withheld: they may hold secrets).
    Cost:     a few reads per image; no pause.
    Partial:  images that could not be read are in images.json with the reason, and counted as a gap.
    Errors:   AccessDenied without the target's uid; NotThere for kernel threads and zombies.
    """

    name: ClassVar[str] = "build_ids"
    question: ClassVar[str] = "Which build was running: which binary and symbols fit this evidence?"
    limit_s: ClassVar[float] = 4.0
    stops: ClassVar[bool] = False
    opt_in: ClassVar[bool] = False

    def applies_to(self, target: Target) -> bool:
        return not target.kernel_thread

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        maps = parse_maps(host.read_proc("maps", 64 * MIB).decode("utf-8", "surrogateescape"))
        if not maps.mappings:
            raise NotThere("the process has no memory any more (a zombie, or it is exiting)")
        images: list[Json] = []
        unread: list[str] = []
        first = _first_mappings(maps.mappings)
        for mapping in first[:MAX_IMAGES]:
            host.check_deadline()
            image = _read_image(mapping, host)
            if image is not None:
                images.append(image)
                if image["read_by"] is None:
                    unread.append(mapping.path)
        body = json.dumps({"images": images, "maps_lines_lost": maps.lost_lines}, indent=1).encode() + b"\n"
        yield Artifact(
            "images.json",
            body,
            f"/proc/{target.pid}/maps and the mapped files",
            "application/json",
            facts={"images": len(images), "unread": len(unread)},
        )
        if unread or len(first) > MAX_IMAGES or maps.lost_lines:
            left = len(unread) + max(0, len(first) - MAX_IMAGES)
            yield Gap(
                f"{self.name}: identity of {left} of {len(first)} mapped files",
                Outcome.PARTIAL,
                Reason("images-unread", f"not readable: {', '.join(unread[:5]) or 'too many'}"),
                self.question,
            )
        if Runtime.GO in target:
            yield from self._go(target, host)

    def _go(self, target: Target, host: Host) -> Iterator[Artifact]:
        fd = host.open_proc("exe")
        try:
            info = read_go_build_info(lambda at, length: os.pread(fd, length, at), os.fstat(fd).st_size)
        finally:
            os.close(fd)
        if info is not None:
            body = json.dumps(asdict(info), indent=1).encode() + b"\n"
            yield Artifact("go.json", body, f"/proc/{target.pid}/exe", "application/json")


def _first_mappings(mappings: list[Mapping]) -> list[Mapping]:
    """One mapping per file, the lowest; files only, and the vdso."""
    first: dict[tuple[object, ...], Mapping] = {}
    for mapping in mappings:
        if mapping.path == VDSO or (mapping.inode and mapping.path.startswith("/")):
            first.setdefault((mapping.dev, mapping.inode, mapping.path), mapping)
    return list(first.values())


def _read_image(mapping: Mapping, host: Host) -> dict[str, Json] | None:
    """One row of images.json; None for a mapped file that is no ELF image."""
    row: dict[str, Json] = {
        "path": mapping.path.encode("utf-8", "surrogateescape").decode("utf-8", "replace"),
        "start": f"{mapping.start:#x}",
        "offset": mapping.offset,
        "device": f"{mapping.dev[0]}:{mapping.dev[1]}",
        "inode": mapping.inode,
        "deleted": mapping.deleted,
        "read_by": None,
    }
    refusals = []
    for way, opener in (("map_files", _by_map_files), ("path", _by_path), ("memory", _by_memory)):
        try:
            fd, base, size = opener(mapping, host)
        except TargetGone:
            raise
        except (CollectError, OSError) as error:
            refusals.append(f"{way}: {error}")
            continue
        try:

            def read(at: int, length: int, fd: int = fd, base: int = base) -> bytes:
                return os.pread(fd, length, base + at)

            if read(0, 4) != ELF_MAGIC:
                return None
            identity = read_elf_identity(read, size, loaded=way == "memory")
            row |= {
                "read_by": way,
                "file_bytes": size,
                "gnu_build_id": identity.gnu_build_id,
                "go_build_id": identity.go_build_id,
                "package_note": identity.package_note,
                "interp": identity.interp,
                "debuglink": asdict(identity.debuglink) if identity.debuglink else None,
                "elf_class": identity.elf_class,
                "machine": identity.machine,
            }
            return row
        except (FormatError, OSError, ValueError) as error:
            refusals.append(f"{way}: {error}")
        finally:
            os.close(fd)
    return {**row, "refused": "; ".join(refusals)[:500]}


def _by_map_files(mapping: Mapping, host: Host) -> tuple[int, int, int | None]:
    if mapping.path == VDSO:
        raise NotThere("the vdso is no file")
    fd = host.open_proc(f"map_files/{mapping.start:x}-{mapping.end:x}")
    return fd, 0, os.fstat(fd).st_size


def _by_path(mapping: Mapping, host: Host) -> tuple[int, int, int | None]:
    if mapping.deleted or mapping.path == VDSO:
        raise NotThere("no file has that name any more")
    fd = host.open_target(mapping.path)
    status = os.fstat(fd)
    if status.st_ino != mapping.inode:
        # Replaced on disk since it was mapped (an upgrade): these are another build's bytes.
        os.close(fd)
        raise NotThere("another file has that name now")
    return fd, 0, status.st_size


def _by_memory(mapping: Mapping, host: Host) -> tuple[int, int, int | None]:
    if mapping.offset:
        raise NotThere("the file's beginning is not mapped")
    return host.open_proc("mem"), mapping.start, None
